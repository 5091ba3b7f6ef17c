"""Which code made a run: versions, and the commit of a checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str]:
    """Of nasengine, Python and torch."""
    try:
        own = version("nasengine")
    except PackageNotFoundError:
        own = "not installed"
    return {"nasengine": own, "python": platform.python_version(), "torch": str(torch.__version__)}


def commit() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head.strip(), "dirty": bool(changes.strip())}
