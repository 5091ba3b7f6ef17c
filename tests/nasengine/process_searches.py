"""Searches by two processes: one to the end, one that is interrupted and goes on, one whose second process is killed.

Before, each of them computes what tests.nasengine.processes does.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nasengine
from nasengine.errors import InterruptedRun, NasengineError, ParallelError, RunError
from nasengine.loop import Observer
from nasengine.parallel import ALONE, Ranks
from nasengine.searching import SearchJob, SearchResult
from tests.nasengine.lives import begin as begin_process
from tests.nasengine.lives import say_into
from tests.nasengine.processes import AROUND, ROOT, computed, meet
from tests.nasengine.runs import flags

SPACE = str(ROOT / "examples" / "images.py:SmallCNN")
SETTINGS = (
    *("space.widths=2,4", "space.layers=2", "algo.alphas.lr=0.3", "data.train_size=40"),
    *("search.epochs=2", "search.batch_size=8", "search.device=cpu", "search.checkpoint_seconds=0"),
)
COMMAND = ["search", "--space", SPACE, "--data", "digits", *flags(SETTINGS)]


class Seen(Observer):
    """Notes that it is called at all."""

    def __init__(self) -> None:
        self.steps = 0

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        self.steps += 1


def begin(out: Path, observer: Observer | None = None) -> SearchResult:
    """The search."""
    return nasengine.search(SPACE, task="digits", settings=SETTINGS, out=out, observer=observer)


FAILURES: Mapping[str, tuple[str, ...]] = {
    "other": ("search.seed=1",),
    "bad": ("search.epochs=0",),
    "drifted": (),
}
"""Settings of rank 1 with which a search of two processes fails; in the last one, its weights change besides."""


def failure(changes: tuple[str, ...], ranks: Ranks, out: Path) -> list[Any]:
    """Kind and text of the error of a search in which rank 1 does something else."""
    step = SearchJob.step

    def spoiled(job: SearchJob, place: int) -> dict[str, Tensor]:
        found = step(job, place)
        next(job.state.train_copy.parameters()).data.mul_(1.001)
        return found

    with pytest.MonkeyPatch.context() as patch:
        if ranks.rank == 1 and not changes:
            patch.setattr(SearchJob, "step", spoiled)
        try:
            settings = (*SETTINGS, *(changes if ranks.rank == 1 else ()))
            nasengine.search(SPACE, task="digits", settings=settings, out=out)
        except NasengineError as error:
            return [type(error).__name__, str(error), error.shared]
    return []


def with_signal(number: int, run: Callable[[], object]) -> None:
    """Runs a search in which this process gets a signal within its third step."""
    step = SearchJob.step

    def struck(job: SearchJob, place: int) -> dict[str, Tensor]:
        if place == 2:
            os.kill(os.getpid(), number)
        return step(job, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchJob, "step", struck)
        run()


def searches(ranks: Ranks, where: Path) -> dict[str, Any]:
    """Runs the searches; the last one ends one process, and what the other says is returned."""
    observer = Seen()
    found = begin(where / "whole", observer)
    told: dict[str, Any] = {"architecture": str(found.architecture), "observed": observer.steps}
    told["record"] = found.record["status"]
    try:
        begin(where / "whole")
    except RunError as error:
        told["occupied"] = [str(error), error.shared]
    try:
        if ranks.rank == 1:
            with_signal(signal.SIGINT, lambda: begin(where / "stopped"))
        else:
            begin(where / "stopped")
    except InterruptedRun as error:
        told["stopped"] = [str(error), error.shared]
    told["resumed"] = str(nasengine.search(out=where / "stopped", resume=True).architecture)
    told["failed"] = [failure(change, ranks, where / name) for name, change in FAILURES.items()]
    torch.save(told, where / f"told-{ranks.rank}.pt")
    since = time.monotonic()
    try:
        if ranks.rank == 1:
            with_signal(signal.SIGKILL, lambda: begin(where / "killed"))
        begin(where / "killed")
    except ParallelError as error:
        told |= {"lost": [str(error), error.shared], "seconds": time.monotonic() - since}
    return told


def start_processes(directory: Path, world: int = 2) -> list[ForkServerProcess]:
    """Starts the ranks; what each of them says to stderr is in said-RANK.txt."""
    return [begin_process(_take_part, rank, world, directory) for rank in range(world)]


def _take_part(rank: int, world: int, directory: Path) -> None:
    say_into(directory / f"said-{rank}.txt")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for name in AROUND:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    mine = meet(rank, world, directory)
    assert mine.world == world and ALONE.world == 1
    torch.save(computed(mine), directory / f"rank-{rank}.pt")
    said = searches(mine, directory)
    (directory / "said.json").write_text(json.dumps(said))
    os._exit(0)  # the group has lost a process
