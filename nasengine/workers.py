"""Independent runs, many at a time: in this process, in local processes, or on the machines of a Ray cluster.

A piece of work is a run of a verb in a directory of its own, which says by itself whether it has ended, and from which
it goes on: so nothing else has to be remembered, results are written once by whoever computes them, and a worker that
dies costs the steps since the last checkpoint.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from nasengine import errors
from nasengine.errors import DivergedError, InterruptedRun, MissingExtraError, NasengineError, RunError, SettingError
from nasengine.loop import Observer, Stop, signals
from nasengine.run_directory import RECORD, read_record, wait_until_free

LOCAL_THREADS: Final = 1
"""Threads of a worker, for results that do not depend on how many there are."""
RAY_MISSING: Final = (
    "Workers on a Ray cluster need Ray, but it is not installed; install it by pip install 'nasengine[ray]'."
)
TRIES: Final = 3
_POLL, _PATIENCE = 0.5, 120.0  # seconds: between looks, and for a worker to save


@dataclass(frozen=True)
class Work:
    """A run to be made.

    Attributes:
        directory: of the run.
        call: `module:function` of a verb, which takes the keywords `out`, `resume` and `observer`.
        arguments: its other keywords: in other processes plain values, as JSON has them.
        device: of the run; one on "cuda" takes a GPU of a cluster for itself.
    """

    directory: Path
    call: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"


Event = Literal["stood", "started", "finished", "diverged", "again"]

Watch = Callable[[Work, Event, int, int], object]
"""Is called with a work, what happened to it, how many have ended, and how many there are."""


class Outcome(NamedTuple):
    """How an attempt ended: its kind, and for errors what was said."""

    kind: Literal["ended", "interrupted", "refused", "crashed"]
    error: str = ""
    said: str = ""


def ended(directory: Path) -> str:
    """ "finished" or "diverged" where the run in a directory is, else an empty text. Raises RunError if damaged."""
    status = str(read_record(directory)["status"]) if (directory / RECORD).exists() else ""
    return status if status in ("finished", "diverged") else ""


def perform(
    works: Sequence[Work],
    workers: int | str = 1,
    watch: Watch = lambda work, event, done, total: None,
    observer: Observer | None = None,
) -> None:
    """Makes all runs that have not ended yet. One that diverges has ended, too.

    Args:
        works: in directories of their own.
        workers: 1 for this process, whose number of threads is its own, by which numbers are rounded otherwise; a
            number of local processes of one thread each; "ray" for the Ray cluster of this machine, which is started if
            there is none; or the address of one, "ray://host:port".
        watch: is told what happens.
        observer: sees every run, where they are made in this process.

    Raises:
        InterruptedRun: after SIGINT or SIGTERM; what was under way has saved its state.
        RunError: a worker was killed three times over the same work.
        NasengineError: what a run raises; the others have saved their state.
    """
    number = checked_workers(workers)
    progress = Progress(works, watch)
    left = [work for work in works if not progress.stood(work)]
    if not left:
        return
    if isinstance(number, str):
        from nasengine.ray_workers import perform_on_ray

        perform_on_ray(left, number, progress)
    elif number == 1:
        _here(left, progress, observer)
    else:
        _Crew(left, number, progress).run()


def ready_workers(workers: int | str) -> int | str:
    """`checked_workers`, after the cluster of an address has been joined.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: no cluster answers in time.
    """
    number = checked_workers(workers)
    if isinstance(number, str):
        from nasengine.ray_workers import connected

        connected(number)
    return number


def checked_workers(workers: int | str) -> int | str:
    """A number of local processes, or the text of a Ray address. Raises SettingError, or MissingExtraError."""
    if isinstance(workers, str) and (workers == "ray" or workers.startswith("ray://")):
        if importlib.util.find_spec("ray") is None:  # told here, before the hours of a search that comes first
            raise MissingExtraError(RAY_MISSING)
        return workers
    try:
        number = int(workers)
        if number < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise SettingError(
            "Workers must be a number of processes from 1 on, ray, or ray://HOST:PORT, but got "
            f"{workers!r}; give one of these by --workers."
        ) from None
    return number


class Progress:
    """Tells what happens to works, each of which ends once."""

    def __init__(self, works: Sequence[Work], watch: Watch) -> None:
        self._watch, self._total, self._done = watch, len(works), 0

    def stood(self, work: Work) -> bool:
        """Whether a work has ended before."""
        if not ended(work.directory):
            return False
        self._done += 1
        self.tell(work, "stood")
        return True

    def tell(self, work: Work, event: Event) -> None:
        self._watch(work, event, self._done, self._total)

    def end(self, work: Work) -> None:
        self._done += 1
        self.tell(work, "diverged" if ended(work.directory) == "diverged" else "finished")


def attempt(work: Work, observer: Observer | None = None) -> Outcome:
    """Makes a run, or goes on with it, and says how that ended."""
    try:
        wait_until_free(work.directory)
        if not ended(work.directory):
            _call(work, observer)
        return Outcome("ended")
    except DivergedError:
        return Outcome("ended")
    except InterruptedRun as error:
        return Outcome("interrupted", said=str(error))
    except NasengineError as error:
        return Outcome("refused", type(error).__name__, str(error))


def _call(work: Work, observer: Observer | None) -> None:
    module, _, name = work.call.partition(":")
    function = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    resume = (work.directory / RECORD).exists()
    function(**work.arguments, out=work.directory, resume=resume, observer=observer)  # type: ignore[operator]


def raise_from(outcome: Outcome) -> None:
    """Raises what ended an attempt, unless it is whole."""
    if outcome.kind == "interrupted":
        raise InterruptedRun(outcome.said)
    if outcome.kind == "refused":
        kind = getattr(errors, outcome.error)
        error = kind.__new__(kind)
        error.args = (outcome.said,)
        raise error
    if outcome.kind == "crashed":
        raise RuntimeError(f"A run failed in a worker:\n{outcome.said}")


def killed(work: Work) -> RunError:
    """The error of a work whose worker died too often."""
    return RunError(
        f"A worker must live to the end of its work, but the one of {work.directory} died {TRIES} times, as it does "
        "where memory runs out; take fewer workers or smaller networks and go on with --resume."
    )


def _here(works: Sequence[Work], progress: Progress, observer: Observer | None) -> None:
    for work in works:
        progress.tell(work, "started")
        raise_from(attempt(work, observer))
        progress.end(work)


class _Crew:
    """Local processes, each with a work at a time; they are told to save and stop when this one is."""

    def __init__(self, works: Sequence[Work], count: int, progress: Progress) -> None:
        self.waiting, self.progress = deque(works), progress
        self.count = min(count, len(works))
        self.tries: Counter[Path] = Counter()
        self.members: dict[Connection, subprocess.Popen[bytes]] = {}
        self.busy: dict[Connection, Work] = {}

    def run(self) -> None:
        with signals() as stop:
            try:
                while self.waiting or self.busy:
                    self._assign()
                    for connection in wait(list(self.busy), _POLL):
                        self._answer(connection)  # type: ignore[arg-type]
                    if stop.name:
                        raise InterruptedRun(self._stopped(stop))
            finally:
                self._dismiss()

    def _assign(self) -> None:
        idle = [connection for connection in self.members if connection not in self.busy]
        while self.waiting and len(self.busy) < self.count:
            work = self.waiting.popleft()
            message = written(work).encode()
            connection = idle.pop() if idle else self._hire()
            self.busy[connection] = work
            self.progress.tell(work, "started" if not self.tries[work.directory] else "again")
            try:
                connection.send_bytes(message)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it died; its end of the pipe says so as well

    def _hire(self) -> Connection:
        mine, theirs = Pipe()
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        visible = _one_gpu(len(self.members))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nasengine.workers", str(theirs.fileno())],  # what is here must not hide ours
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which tells them
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(LOCAL_THREADS), **visible},
        )
        theirs.close()
        self.members[mine] = process
        return mine

    def _answer(self, connection: Connection) -> None:
        """Takes what a worker has to say; one that has died says nothing more."""
        work = self.busy.pop(connection)
        try:
            outcome = Outcome(*json.loads(connection.recv_bytes()))
        except (EOFError, ConnectionResetError):
            self.members.pop(connection).wait()
            connection.close()
            self._retry(work)
            return
        if outcome.kind == "interrupted":  # by someone else: this process has not asked for it
            self._retry(work)
            return
        raise_from(outcome)
        self.progress.end(work)

    def _retry(self, work: Work) -> None:
        self.tries[work.directory] += 1
        if self.tries[work.directory] == TRIES:
            raise killed(work)
        self.waiting.appendleft(work)

    def _stopped(self, stop: Stop) -> str:
        under_way = len(self.busy)
        return f"Stopped by {stop.name} with {under_way} under way and {len(self.waiting)} to come, all is saved."

    def _dismiss(self) -> None:
        """Has all that are busy save and stop, and ends them."""
        for connection in self.busy:
            self.members[connection].terminate()
        end, saving = time.monotonic() + _PATIENCE, list(self.busy)
        with suppress(KeyboardInterrupt):  # asked again, they end at once
            while saving and time.monotonic() < end:
                ready = wait(saving, _POLL)
                saving = [connection for connection in saving if connection not in ready]
        for connection, process in self.members.items():
            connection.close()  # one that is idle ends by itself
            if connection in saving:
                process.kill()
            process.wait()


def written(work: Work) -> str:
    """A work as a text for other processes. Raises SettingError where it is more than plain values."""
    try:
        return json.dumps([str(work.directory.resolve()), work.call, dict(work.arguments), work.device])
    except TypeError:
        raise SettingError(
            "Other processes must find space, data and the like by name, but they are given as objects of Python; put "
            "them into a file and name them by file.py:NAME, or take one worker."
        ) from None


def read(text: str) -> Work:
    """What `written` wrote."""
    directory, call, arguments, device = json.loads(text)
    return Work(Path(directory), call, arguments, device)


def _one_gpu(number: int) -> dict[str, str]:
    """The environment that leaves one of several GPUs to a worker, in turns."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    return {"CUDA_VISIBLE_DEVICES": str(number % count)}


def serve(descriptor: int) -> None:
    """A worker: makes the runs that come over a pipe until it is closed."""
    connection = Connection(descriptor)
    torch.set_num_threads(LOCAL_THREADS)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            return
        outcome = _outcome(content)
        try:
            connection.send_bytes(json.dumps(outcome).encode())
        except (BrokenPipeError, ConnectionResetError):
            return


def _outcome(content: bytes) -> Outcome:
    try:
        return attempt(read(content.decode()))
    except Exception:  # whatever it is, the process that asked raises it
        return Outcome("crashed", said=traceback.format_exc())


def _end_with(parent: int) -> None:
    """Asks this process to save and stop once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from nasengine import workers  # the classes of the module by its name, not of __main__

    workers.serve(int(sys.argv[1]))
