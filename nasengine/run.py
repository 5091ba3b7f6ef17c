"""The run directory: one place on disk that holds all of a search or training, and from which it goes on.

Files are written beside their place and renamed, so that a crash at any instant leaves the old file or the new one, whole.
One process at a time holds the directory. Nothing that is read back can run code.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import platform
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock, Timeout

from nasengine.errors import RunError

RECORD: Final = "run.json"
CHECKPOINT: Final = "checkpoint.pt"
HISTORY: Final = "history.csv"
_LOCK: Final = ".lock"
_FORMAT: Final = 1
_FREE: Final = {"checkpoint_seconds"}  # settings that may differ when a run goes on

Row = Mapping[str, float | int | str]


class Run:
    """A run directory that this process holds; use as a context manager to let it go.

    Attributes:
        path: the directory.
        record: what run.json says.
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: FileLock) -> None:
        self.path, self.record, self._lock = path, record, lock

    @classmethod
    def start(cls, path: Path, verb: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
        """A new run in a directory that is missing or empty.

        Args:
            path: the directory.
            verb: "search" or "train".
            config: the resolved configuration, plain values.
            facts: further entries of run.json that must be the same when the run goes on (what the data are).
        """
        lock = _locked(path)
        if any(entry.name != _LOCK for entry in path.iterdir()):
            lock.release()
            raise RunError(_occupied(path))
        record = {
            "format": _FORMAT,
            "verb": verb,
            "status": "running",
            "config": dict(config),
            "facts": dict(facts),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "versions": _versions(),
            "git": _git(),
        }
        run = cls(path, record, lock)
        run.update()
        return run

    @classmethod
    def resume(cls, path: Path, verb: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
        """The run in a directory, to go on with it under the same configuration."""
        record = read_record(path)
        if record["verb"] != verb:
            raise RunError(f"{path} must hold a run of 'nasengine {verb}' to go on with, but holds one of '{record['verb']}'.")
        if record["status"] == "finished":
            raise RunError(f"The run in {path} is finished: nothing is left to go on with; give another --out for a new one.")
        if record["status"] == "diverged":
            raise RunError(f"The run in {path} diverged and would do so again; start a new one with other settings and --out.")
        theirs, ours = {"config": record["config"], "facts": record["facts"]}, {"config": config, "facts": facts}
        differences = [line for line in _differences(theirs, ours, "") if line.split(" ")[0].rpartition(".")[2] not in _FREE]
        if differences:
            raise RunError(
                f"A run must go on with its own configuration, but {differences[0]} is asked for in {path}"
                f"{f' (and {len(differences) - 1} more differ)' if len(differences) > 1 else ''}; drop what differs or give another --out."
            )
        return cls(path, record, _locked(path))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def update(self, changes: Mapping[str, Any] | None = None) -> None:
        """Puts entries into run.json."""
        self.record.update(changes or {})
        self.write_text(RECORD, json.dumps(self.record, indent=2) + "\n")

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint by tensors and plain values."""
        content = {"nasengine": _FORMAT, "verb": self.record["verb"], "started": self.record["started"], "state": dict(state)}
        _write(self.path / CHECKPOINT, lambda file: torch.save(content, file))

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """What `save_checkpoint` saved last, or None before the first one. Raises RunError when it is damaged or foreign."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        content = read_tensors(path, device)
        if not isinstance(content, dict) or content.get("nasengine") != _FORMAT:
            raise RunError(f"{path} must be a checkpoint of nasengine, but is another file; remove it to start the run again.")
        if (content["verb"], content["started"]) != (self.record["verb"], self.record["started"]):
            raise RunError(f"{path} must be the checkpoint of this run, but belongs to another; remove it to start the run again.")
        state: dict[str, Any] = content["state"]
        return state

    def write_history(self, rows: Sequence[Row]) -> None:
        """Replaces history.csv: one row an epoch, plain numbers."""
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self.write_text(HISTORY, text.getvalue())

    def write_text(self, name: str, text: str) -> None:
        """Replaces a text file of the directory."""
        _write(self.path / name, lambda file: file.write(text.encode()))

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Replaces a file of the directory by what `write` writes to the path it is given, which has the same suffix."""
        partial = self.path / f".partial-{name}"
        with _saving(self.path / name):
            write(partial)
            os.replace(partial, self.path / name)


def read_record(path: Path) -> dict[str, Any]:
    """What the run.json of a run directory says. Raises RunError."""
    if not path.is_dir():
        raise RunError(f"A run must be a directory that nasengine wrote, but {path} is {'a file' if path.exists() else 'missing'}.")
    return read_run_json(path / RECORD)


def read_run_json(path: Path) -> dict[str, Any]:
    """A run.json. Raises RunError when it is missing, unreadable or of something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"There must be a run.json of nasengine at {path}, but there is none.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} must be a run.json of nasengine, but cannot be read: {error}.") from None
    missing = [key for key in ("verb", "status", "config", "facts") if not isinstance(record, dict) or key not in record]
    if missing:
        raise RunError(f"{path} must be a run.json of nasengine, but has no entry {missing[0]!r}.")
    return dict(record)


def read_tensors(path: Path, device: torch.device) -> Any:
    """Tensors and plain values of a file that torch.save wrote; every byte is checked. Raises RunError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        return torch.load(path, map_location=device, weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise RunError(f"{path} must be a whole checkpoint, but is damaged ({reason}); remove it to start the run again.") from None


def _locked(path: Path) -> FileLock:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"A run must be held by one process, but another one holds {path}; wait for it or stop it.") from None
    except OSError as error:
        raise RunError(f"The run directory {path} must be writable, but {error.strerror or error}; give another --out.") from None
    return lock


def _occupied(path: Path) -> str:
    if not (path / RECORD).exists():
        return f"The run directory {path} must be new or empty, but holds other files; give another --out."
    status = read_record(path)["status"]
    hint = "" if status in ("finished", "diverged") else "add --resume to go on with it, or "
    return f"The run directory {path} must be new or empty, but holds a run that is {status}; {hint}give another --out."


class _saving:
    """Turns a failing write into one sentence that names the file and says what is still whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or (isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)):
            raise RunError(
                f"There must be space to save {self.path}, but the disk is full; what was saved before is whole: make room and "
                "go on with --resume."
            ) from None
        if isinstance(error, OSError):
            raise RunError(f"{self.path} must be writable, but {error.strerror or error}; what was saved before is whole.") from None


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    with _saving(path):
        try:
            with partial.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _differences(theirs: Any, ours: Any, where: str) -> list[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        return [line for key in keys for line in _differences(theirs.get(key), ours.get(key), f"{where}.{key}")]
    if theirs == ours:
        return []
    name = where.removeprefix(".config.").removeprefix(".facts.")
    return [f"{name} {ours!r} instead of {theirs!r}"]


def _versions() -> dict[str, str]:
    try:
        own = version("nasengine")
    except PackageNotFoundError:
        own = "not installed"
    return {"nasengine": own, "python": platform.python_version(), "torch": str(torch.__version__)}


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head.strip(), "dirty": bool(changes.strip())}
