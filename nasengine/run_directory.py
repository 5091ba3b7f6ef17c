"""The run directory: one place on disk that holds all of a search or training, and from which it goes on.

Files are written beside their place and renamed, so that a crash at any instant leaves the old file or the new one,
whole. One process at a time holds the directory. Nothing that is read back can run code.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock, Timeout

from nasengine.errors import RunError
from nasengine.provenance import commit, versions
from nasengine.tables import Row as Row
from nasengine.tables import csv_text

RECORD: Final = "run.json"
CHECKPOINT: Final = "checkpoint.pt"
HISTORY: Final = "history.csv"
_LOCK: Final = ".lock"
_PARTIAL: Final = ".partial-"
_FORMAT: Final = 1
_FREE: Final = {  # settings that may differ when a run goes on
    *("search.checkpoint_seconds", "train.checkpoint_seconds", "collect.checkpoint_seconds"),
    *("collect.count", "compare.seeds", "run.export"),
}
_ANEW: Final = {  # settings under which a finished run can go on to another end
    "search": {f"search.{name}" for name in ("max_params", "max_flops", "max_latency", "max_memory")}
    | {f"search.latency.{name}" for name in ("runtime", "device", "threads", "batch_size")},
    "collect": {"collect.count"},
    "compare": {"compare.seeds"},
}
_PARTS: Final = {
    "search": ("space", "algo", "data", "search"),
    "train": ("space", "data", "train"),
    "collect": ("space", "data", "collect"),
    "rank": ("space", "predictor", "rank"),
    "front": ("space", "front"),
    "propose": ("propose",),
    "run": ("space", "algo", "data", "search", "propose", "collect", "predictor", "rank", "train", "run"),
    "compare": ("space", "algos", "data", "search", "final", "train", "compare"),
}  # of a configuration
_WHOLE: Final = {"rank", "propose", "front"}  # verbs that begin anew where they were stopped


class Run:
    """A run directory that this process holds; use as a context manager to let it go.

    Attributes:
        path: the directory.
        record: what run.json says.
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: FileLock, made: Sequence[Path] = ()) -> None:
        self.path, self.record, self._lock, self._made = path, record, lock, made

    @classmethod
    def start(cls, path: Path, verb: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
        """A new run in a directory that is missing or empty.

        Args:
            path: the directory.
            verb: one of nasengine, such as "search".
            config: the resolved configuration, plain values.
            facts: further entries of run.json that must be the same when the run goes on (what the data are).
        """
        if not (path / RECORD).exists():
            check_free(path, verb)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        lock = _locked(path)
        try:
            check_free(path, verb)
            record = {
                "format": _FORMAT,
                "id": uuid.uuid4().hex,
                "verb": verb,
                "status": "running",
                "config": dict(config),
                "facts": dict(facts),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": 0.0,
                "versions": versions(),
                "git": commit(),
            }
            run = cls(path, record, lock, made)
            run.update()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def resume(cls, path: Path, verb: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
        """The run in a directory, to go on with it as it was configured; once it is finished, to another end."""
        read_record(path)
        lock = _locked(path)
        try:
            record = read_record(path)  # anew: until the lock was ours another process may have gone on
            if _asks_anew(record, config):
                record |= {"status": "interrupted", "config": json.loads(json.dumps(dict(config)))}
                record.pop("result", None)
            _check_resumable(path, record, verb)
            _check_same(path, record, config, facts)
        except BaseException:
            lock.release()
            raise
        return cls(path, record, lock)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock.is_locked and not _holds_something(self.path):
            with suppress(OSError):  # what was there before, and what others have put there since, stays
                (self.path / _LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        self._lock.release()

    def update(self, changes: Mapping[str, Any] | None = None) -> None:
        """Puts entries into run.json."""
        self.record.update(changes or {})
        self.write_text(RECORD, json.dumps(self.record, indent=2) + "\n")

    def discard(self, names: Iterable[str], keep_record: bool = False) -> None:
        """Removes files, and run.json unless it is kept: without it the directory is new again."""
        for name in [*names, *([] if keep_record else [RECORD])]:
            (self.path / name).unlink(missing_ok=True)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint by tensors and plain values."""
        content = io.BytesIO()  # torch.save hides the reason when a file cannot be written
        torch.save({"nasengine": _FORMAT, "id": self.record["id"], "state": dict(state)}, content)
        data = content.getvalue()
        self.write_bytes(CHECKPOINT, data + hashlib.sha256(data).digest())

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """What `save_checkpoint` saved last, None before the first one. Raises RunError if it is damaged or foreign."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        content = read_tensors(path, device)
        if not isinstance(content, dict) or content.get("nasengine") != _FORMAT:
            raise RunError(
                f"{path} must be a checkpoint of nasengine, but is another file; remove it to start the run again."
            )
        if content["id"] != self.record["id"]:
            raise RunError(
                f"{path} must be the checkpoint of this run, but belongs to another; remove it to start the run again."
            )
        state: dict[str, Any] = content["state"]
        return state

    def write_history(self, rows: Sequence[Row]) -> None:
        """Replaces history.csv: one row an epoch, plain numbers."""
        self.write_text(HISTORY, csv_text(rows))

    def write_text(self, name: str, text: str) -> None:
        """Replaces a text file of the directory."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replaces a file of the directory."""
        self.write_file(name, lambda path: path.write_bytes(data))

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Replaces a file of the directory by what `write` writes to the path it is given, of the same suffix."""
        replace_file(self.path / name, write)


def add_result(path: Path, entries: Mapping[str, Any]) -> None:
    """Adds entries to the result of a finished run. Raises RunError while another process holds it."""
    lock = _locked(path)
    with Run(path, read_record(path), lock) as run:
        run.update({"result": {**run.record.get("result", {}), **entries}})


def check_free(path: Path, verb: str) -> None:
    """Raises RunError unless a run can start in a directory: it is new, empty, or has one that begins anew."""
    if _holds_something(path) and not _begins_anew(path, verb):
        raise RunError(_occupied(path))


def read_record(path: Path) -> dict[str, Any]:
    """What the run.json of a run directory says. Raises RunError."""
    if not os.path.isdir(path):  # Path.is_dir raises where a name is too long
        state = "a file" if os.path.exists(path) else "missing"
        raise RunError(f"A run must be a directory that nasengine wrote, but {path} is {state}.")
    return read_run_json(path / RECORD)


def read_run_json(path: Path) -> dict[str, Any]:
    """A run.json. Raises RunError when it is missing, unreadable or of something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"There must be a run.json of nasengine at {path}, but there is none.") from None
    except OSError as error:
        raise RunError(
            f"{path} must be a run.json of nasengine, but cannot be read: {error.strerror or error}."
        ) from None
    except ValueError:
        raise RunError(f"{path} must be a run.json of nasengine, but is not JSON.") from None
    missing = _missing(record)
    if missing:
        raise RunError(f"{path} must be a run.json of nasengine, but has no {missing}.")
    return dict(record)


def read_tensors(path: Path, device: torch.device) -> Any:
    """Tensors and plain values of a checkpoint, after its checksum, which is its last 32 bytes. Raises RunError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} must be a readable checkpoint, but {error.strerror or error}.") from None
    data, checksum = content[:-32], content[-32:]
    try:
        if hashlib.sha256(data).digest() != checksum:
            raise ValueError
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception:  # torch.load raises whatever its parts raise
        raise RunError(
            f"{path} must be a whole checkpoint of nasengine, but is damaged or another file; remove it to start the "
            "run again."
        ) from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file by what `write` writes to the path it is given, of the same suffix: all of it or nothing."""
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    with saving(path):
        try:
            write(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turns a failing write into one sentence that names the file and says what is still whole."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"There must be space to save {path}, but the disk is full; what was saved before is whole: make room "
                "and go on with --resume."
            ) from None
        raise RunError(
            f"{path} must be writable, but {error.strerror or error}; what was saved before is whole."
        ) from None


def _missing(record: object) -> str:
    """What a record would need to be one of a run, or an empty text."""
    if not isinstance(record, dict):
        return "entries"
    for key, kind in (("id", str), ("status", str), ("config", dict), ("facts", dict)):
        if not isinstance(record.get(key), kind):
            return f"entry {key!r}"
    if record.get("verb") not in _PARTS:
        return "known verb"
    config = record["config"]
    wrong = [name for name in _PARTS[record["verb"]] if not isinstance(config.get(name), dict)]
    if record["verb"] == "train" and not isinstance(config.get("architecture"), str):
        wrong.append("architecture")
    return (
        f"entry 'config.{wrong[0]}'"
        if wrong
        else ""
        if isinstance(record.get("result", {}), dict)
        else "entry 'result'"
    )


def _check_resumable(path: Path, record: Mapping[str, Any], verb: str) -> None:
    if record["verb"] != verb:
        raise RunError(
            f"{path} must hold a run of 'nasengine {verb}' to go on with, but holds one of '{record['verb']}'."
        )
    if record["status"] == "finished":
        option = {"collect": "--count", "compare": "--seeds"}.get(verb)
        more = f"ask for more by {option} alone, or " if option else ""
        raise RunError(
            f"The run in {path} is finished: nothing is left to go on with; {more}give another --out for a new one."
        )
    if record["status"] == "diverged":
        raise RunError(
            f"The run in {path} diverged and would do so again; start a new one with other settings and --out."
        )


def _asks_anew(record: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a run is finished, and a configuration differs from its own in where it ends and in nothing else."""
    anew = _ANEW.get(record["verb"], set())
    changed = {name for name, *_ in _differences(record["config"], config, "")} - (_FREE - anew)
    return record["status"] == "finished" and bool(changed) and changed <= anew


def _check_same(path: Path, record: Mapping[str, Any], config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    changed = _differences(record["facts"], facts, "")
    differences = [(name, *both) for name, *both in _differences(record["config"], config, "") if name not in _FREE]
    if differences:
        name, theirs, ours = differences[0]
        more = f" (and {len(differences) - 1} more differ)" if len(differences) > 1 else ""
        raise RunError(
            f"A run must go on with its own configuration, but {name} is {theirs!r} in {path} and {ours!r} is asked "
            f"for{more}; drop what differs or give another --out."
        )
    if changed:
        name, theirs, ours = changed[0]
        raise RunError(
            f"A run must go on with its own data, but in {path} their {name} is {theirs!r} and now it is {ours!r}; put "
            "the old data back or give another --out."
        )


def _holds_something(path: Path) -> bool:
    """Whether there is more in a directory than what a start that was killed may leave."""
    try:
        names = os.listdir(path) if os.path.isdir(path) else []
    except OSError as error:
        raise RunError(
            f"The run directory {path} must be readable, but {error.strerror or error}; give another --out."
        ) from None
    return any(name != _LOCK and not name.startswith(_PARTIAL) for name in names)


def _begins_anew(path: Path, verb: str) -> bool:
    """Whether there is a run of `verb` that was killed, of which nothing is kept."""
    if verb not in _WHOLE or not (path / RECORD).exists():
        return False
    record = read_record(path)
    return bool(record["verb"] == verb and record["status"] == "running")


def wait_until_free(path: Path, seconds: float = 30.0) -> None:
    """Returns once no process holds a run directory, or when the time is over: a worker may outlive who began it."""
    if not (path / _LOCK).exists():
        return
    with suppress(Timeout, OSError), FileLock(path / _LOCK).acquire(timeout=seconds):
        pass


def _locked(path: Path) -> FileLock:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"A run must be held by one process, but another one holds {path}; wait for it or stop it."
        ) from None
    except OSError as error:
        raise RunError(
            f"The run directory {path} must be writable, but {error.strerror or error}; give another --out."
        ) from None
    return lock


def _occupied(path: Path) -> str:
    if not (path / RECORD).exists():
        return f"The run directory {path} must be new or empty, but holds other files; give another --out."
    record = read_record(path)
    status, ended = record["status"], record["status"] in ("finished", "diverged")
    hint = "" if ended or record["verb"] in _WHOLE else "add --resume to go on with it, or "
    state = status if ended else "not finished"
    return f"The run directory {path} must be new or empty, but holds a run that is {state}; {hint}give another --out."


def _differences(theirs: Any, ours: Any, where: str) -> list[tuple[str, Any, Any]]:
    """Dotted name and both values of whatever differs."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = [*theirs, *(key for key in ours if key not in theirs)]
        return [found for key in keys for found in _differences(theirs.get(key), ours.get(key), f"{where}.{key}")]
    same = theirs == json.loads(json.dumps(ours))  # JSON makes lists of tuples
    return [] if same else [(where.removeprefix("."), theirs, ours)]
