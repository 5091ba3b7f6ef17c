"""A run directory that several processes share: the first of them writes, the others follow."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from nasengine.parallel import ALONE, Ranks, check_alike, digest, from_first, largest
from nasengine.run_directory import Run


class SharedRun(Run):
    """The run of processes that train together; only rank 0 needs its directory, holds it, reads and writes it.

    What is read is sent to the others, so that no file system has to be shared. At every checkpoint their states are
    compared. The state is that of all processes: a run goes on with any number of them.
    """

    ranks: Ranks

    @classmethod
    def open(
        cls, ranks: Ranks, resume: bool, path: Path, verb: str, config: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> SharedRun:
        """`Run.start`, or `Run.resume`, on all processes. Raises RunError, or ParallelError if their data differ."""
        check_alike(
            ranks,
            digest(json.loads(json.dumps([config, facts]))),
            "configuration and data",
            "give all of them the same command, files and versions",
        )
        held: list[Run] = []

        def begin() -> bytes:
            held.append((Run.resume if resume else Run.start)(path, verb, config, facts))
            return json.dumps(held[0].record).encode()

        record = json.loads(from_first(ranks, begin))
        run = cls(path, record, held[0]._lock if held else FileLock(path / "never-acquired"))
        run.ranks = ranks
        return run

    def discard(self, names: Iterable[str], keep_record: bool = False) -> None:
        if self.ranks.first:
            super().discard(names, keep_record)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """`Run.save_checkpoint`. Raises ParallelError unless the state is the same on all processes."""
        check_alike(
            self.ranks,
            digest([state["step"], state["job"]]),
            "state",
            f"nothing was saved since step {self.record.get('step', 0)}: use processors of one kind, and resume",
        )
        if self.ranks.first:
            super().save_checkpoint(state)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """`Run.load_checkpoint` of rank 0, on all processes."""

        def read() -> bytes:
            state, content = Run.load_checkpoint(self, torch.device("cpu")), io.BytesIO()
            if state is not None:
                torch.save(state, content)
            return content.getvalue()

        content = from_first(self.ranks, read)
        if not content:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        return state

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        if self.ranks.first:
            super().write_file(name, write)


def ranks_of(run: Run) -> Ranks:
    """The place of this process among those that share a run."""
    return run.ranks if isinstance(run, SharedRun) else ALONE


def agreed(run: Run, stop: str, due: bool) -> tuple[str, bool]:
    """The signal that asked any process to stop, by name, and whether a checkpoint is due, the same on all of them."""
    ranks = ranks_of(run)
    if ranks.world == 1:
        return stop, due
    number, someone = largest(ranks, signal.Signals[stop] if stop else 0, due and ranks.first)
    return signal.Signals(number).name if number else "", bool(someone)
