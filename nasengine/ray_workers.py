"""Independent runs on a Ray cluster, of this machine or of many (Moritz et al., OSDI 2018, arXiv:1712.05889).

Where a worker sees the directory of a run, it works there, as local processes do. On a machine without a file system
in common with this one it works in a directory of its own, of which this process writes the copy that arrives.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nasengine.errors import InterruptedRun, MissingExtraError, RunError
from nasengine.loop import signals
from nasengine.workers import (
    LOCAL_THREADS,
    RAY_MISSING,
    TRIES,
    Outcome,
    Progress,
    Work,
    attempt,
    killed,
    raise_from,
    read,
    written,
)

_ANSWER: Final = 10.0  # seconds that an address has to answer
_POLL, _PATIENCE = 0.5, 60.0
_PORT = 10001
_MARK = ".seen-"


@dataclass(frozen=True)
class _Sent:
    """How an attempt ended, and the files of the run where only the worker has them."""

    outcome: Outcome
    files: Mapping[str, bytes]


def perform_on_ray(works: Sequence[Work], address: str, progress: Progress) -> None:
    """Makes all runs on a cluster; see `workers.perform`."""
    ray = connected(address)
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_remote)
    with signals() as stop, _marked(works) as mark:
        pending = {}
        for work in works:
            text = written(work)
            name = f"nasengine {work.directory.name}"
            reference = task.options(num_gpus=int(work.device.startswith("cuda")), name=name).remote(
                text, str(Path.cwd()), mark
            )
            pending[reference] = work
        try:
            while pending:
                ready, _ = ray.wait(list(pending), timeout=_POLL)
                for reference in ready:
                    _take(ray, reference, pending.pop(reference), progress)
                if stop.name:
                    raise InterruptedRun(f"Stopped by {stop.name} with {len(pending)} to come, all is saved.")
        finally:
            for reference in pending:
                ray.cancel(reference, force=False)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=_PATIENCE)


def _take(ray: Any, reference: Any, work: Work, progress: Progress) -> None:
    """Writes what came of a work, if its worker could not, and raises what ended it."""
    try:
        sent: _Sent = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
        raise killed(work) from None
    if sent.files:
        _write(work.directory, sent.files)
    raise_from(sent.outcome)
    progress.end(work)


def _remote(text: str, folder: str, mark: str) -> _Sent:
    """What a worker of the cluster does."""
    import torch

    torch.set_num_threads(LOCAL_THREADS)
    if os.path.isdir(folder):
        os.chdir(folder)  # names of files may be relative
    work = read(text)
    if (work.directory.parent / mark).exists():
        return _Sent(attempt(work), {})
    with tempfile.TemporaryDirectory() as alone:
        away = replace(work, directory=Path(alone) / work.directory.name)
        outcome = attempt(away)
        return _Sent(outcome, _read(away.directory) if outcome.kind == "ended" else {})


def _read(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    """All files of a directory at once."""
    partial = directory.with_name(f".partial-{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for name, content in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


@contextmanager
def _marked(works: Sequence[Work]) -> Iterator[str]:
    """The name of a file beside the directories by which a worker sees that it has the same file system."""
    mark = f"{_MARK}{uuid.uuid4().hex}"
    parents = {work.directory.parent for work in works}
    for parent in parents:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{_MARK}*"):  # of a process that was killed
            old.unlink(missing_ok=True)
        (parent / mark).touch()
    try:
        yield mark
    finally:
        for parent in parents:
            (parent / mark).unlink(missing_ok=True)


def connected(address: str) -> Any:
    """Ray, in a cluster. Raises MissingExtraError, or RunError where the address does not answer in time."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError(RAY_MISSING) from None
    if address != "ray":
        _check_answers(address)
    if not ray.is_initialized():
        try:
            _join(ray, address)
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
            raise RunError(
                f"A Ray cluster must answer at {address}, but does not: {' '.join(str(error).split())[:200]}; start it "
                "by 'ray start --head', or take local workers."
            ) from None
    return ray


def _join(ray: Any, address: str) -> None:
    """Joins the cluster of an address, or that of this machine, which is started if there is none."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address != "ray":
        ray.init(address=address, **quiet)
        return
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(include_dashboard=False, **quiet)


def _check_answers(address: str) -> None:
    try:
        parts = urlsplit(address)
        if not parts.hostname:
            raise OSError("it names no machine")
        socket.create_connection((parts.hostname, parts.port or _PORT), _ANSWER).close()
    except (OSError, ValueError) as error:
        raise RunError(
            f"A Ray cluster must answer at {address} within {_ANSWER:.0f} seconds, but does not: {error}; start it by "
            "'ray start --head' there, or take local workers."
        ) from None
