"""What was measured on a machine, kept in a file of the user's cache: plain values, nothing that can run code."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from nasengine.errors import RunError
from nasengine.run_directory import replace_file

_FORMAT: Final = 1
_PATIENCE: Final = 10.0  # seconds until another process lets a file go


@dataclass(frozen=True)
class Measured:
    """What is known of a machine.

    Attributes:
        pieces: seconds by the text of a piece.
        spaces: what was found by end-to-end measurements, plain values by the key of a space.
    """

    pieces: dict[str, float] = field(default_factory=dict)
    spaces: dict[str, Any] = field(default_factory=dict)


def cache_file(machine: Mapping[str, Any]) -> Path | None:
    """Below XDG_CACHE_HOME where that is set, else below ~/.cache; None where there is no home."""
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = folder if folder.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "nasengine" / f"latency-{_FORMAT}-{digest}.json"


def load(path: Path | None) -> Measured:
    """What a file holds; nothing where it is missing or damaged, so that it is measured again."""
    if path is None:
        return Measured()
    try:
        content = json.loads(path.read_bytes())
        body = content["measured"]
        if content["sha256"] != _digest(body) or not all(map(_seconds, body["pieces"].values())):
            return Measured()
        return Measured(dict(body["pieces"]), dict(body["spaces"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Measured()


def save(path: Path | None, machine: Mapping[str, Any], measured: Measured) -> None:
    """Adds to what a file holds; processes may do so at the same time, and where it cannot be written nothing is."""
    if path is None:
        return
    with suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_PATIENCE):  # its Timeout is an OSError
            there = load(path)
            body = {
                "machine": dict(machine),
                "pieces": {**there.pieces, **measured.pieces},
                "spaces": {**there.spaces, **measured.spaces},
            }
            text = json.dumps({"sha256": _digest(body), "measured": body}, indent=1)
            replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _seconds(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value >= 0
