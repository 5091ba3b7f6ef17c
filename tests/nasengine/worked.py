"""What workers call in tests: trainings that die, stop or tell that they ran."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nasengine
from nasengine.errors import SettingError
from nasengine.loop import Observer
from tests.nasengine.runs import GENOTYPE, TRAIN


class _Killing(Observer):
    """Ends its process after a step as a machine that fails does."""

    def __init__(self, number: int) -> None:
        self.number = number

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        time.sleep(0.05)
        if step >= 3:
            os.kill(os.getpid(), self.number)


def train(
    *,
    data: str,
    seed: int,
    log: str,
    deaths: int = 0,
    death: int = signal.SIGKILL,
    settings: Sequence[str] = (),
    out: Path,
    resume: bool,
    observer: Observer | None,
) -> None:
    """A tiny training that writes into a log when it begins and ends; it dies in its first attempts."""
    lines = Path(log).read_text().splitlines() if Path(log).exists() else []
    tell(log, f"begin {seed}")
    begun = lines.count(f"begin {seed}")
    given = (*TRAIN, "space.nodes=1", f"train.seed={seed}", "train.checkpoint_seconds=0", *settings)
    watching = _Killing(death) if begun < deaths else observer
    if resume:
        nasengine.train(task=data, out=out, resume=True, observer=watching)
    else:
        nasengine.train(genotype=GENOTYPE, task=data, settings=given, out=out, observer=watching)
    tell(log, f"end {seed}")


def refuse(*, out: Path, resume: bool, observer: Observer | None) -> None:
    raise SettingError("A number must be even, but got 3; give 4.")


def fail(*, out: Path, resume: bool, observer: Observer | None) -> None:
    raise ZeroDivisionError("of a test")


def tell(log: str, line: str) -> None:
    """Adds a line at once, whoever else writes."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\n".encode())
    os.close(file)
