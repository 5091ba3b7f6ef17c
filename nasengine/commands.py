"""Command lines that repeat something: what to type to train one architecture."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from nasengine.config import TrainSettings
from nasengine.errors import NasengineError
from nasengine.registry import SPACES
from nasengine.settings import plain
from nasengine.task import DataSettings


def training_command(config: Mapping[str, Any], text: str) -> str:
    """The command that trains an architecture on its own.

    Args:
        config: of the run that it comes from: space, or final where that says how it is trained, and where there are,
            data and train.
        text: the architecture as `Space.write` has it.
    """
    final = "final" in config
    space, data = dict(config["final" if final else "space"]), dict(config.get("data", {}))
    name, source = str(space.pop("name")), data.pop("name", None)
    changed = [
        f"--set space.{key}={_value(value)}" for key, value in space.items() if _defaults(name, final).get(key) != value
    ]
    for group, kind in (("data", DataSettings), ("train", TrainSettings)):
        values, usual = data if group == "data" else dict(config.get("train", {})), plain(kind())
        changed += [f"--set {group}.{key}={_value(value)}" for key, value in values.items() if usual.get(key) != value]
    parts = ["nasengine train --space", shlex.quote(name), "--genotype", quoted(text), *changed]
    return " ".join([*parts, "--data", shlex.quote(str(source)) if source else "YOUR_DATA"])


def quoted(text: str) -> str:
    """A text as a word of a shell: between double quotes where it has single ones and needs no escapes there."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _defaults(name: str, final: bool) -> dict[str, Any]:
    try:
        space = SPACES[name]().final() if final else SPACES[name]()
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain(space).items()}
    except (NasengineError, TypeError):  # a file that is not here, a space with settings that must be given
        return {}


def _value(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return shlex.quote(str(value).lower() if isinstance(value, bool) or value is None else str(value))
