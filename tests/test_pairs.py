"""Every registered space under every registered algorithm: a search that is stopped and goes on, and a training."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

import nasengine
from nasengine.architecture import Architecture
from nasengine.errors import InterruptedRun
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.task import DataSettings, Task, load_task
from tests.nasengine.runs import assert_same_run, record
from tests.search_spaces.test_contract import SMALL

SEARCH = ("search.epochs=2", "search.batch_size=8", "search.eval_size=8", "search.device=cpu")
TRAIN = ("train.epochs=1", "train.batch_size=32", "train.device=cpu")
QUICK = {
    "deps": ("algo.evolution.population=2", "algo.evolution.generations=1"),
    "random": ("algo.samples=2",),
}
"""Settings that make an algorithm quick; the others, and new ones, run at their defaults."""


class StopAfter(nasengine.Observer):
    """Sends SIGINT after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits", DataSettings(train_size=40))


def small(name: str, group: str = "space") -> list[str]:
    """The settings of a small space, as texts."""
    settings = SMALL.get(name, {})
    return [
        f"{group}.{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for key, value in settings.items()
    ]


@pytest.mark.parametrize("algo", ALGORITHMS.names())
@pytest.mark.parametrize("space", [name for name in SPACES.names() if SPACES[name].searchable])
def test_pair(space: str, algo: str, task: Task, tmp_path: Path) -> None:
    settings = [*SEARCH, *small(space), *small(space, "final"), *QUICK.get(algo, ())]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    found = nasengine.search(space, algo, task, settings=settings, out=whole)
    with pytest.raises(InterruptedRun):
        nasengine.search(space, algo, task, settings=settings, out=stopped, observer=StopAfter(3))
    nasengine.search(task=task, out=stopped, resume=True)
    assert_same_run(whole, stopped)

    assert Architecture.parse(str(found.architecture)) == found.architecture
    trained = nasengine.train(whole, task=task, settings=[*TRAIN, *small(space)])
    assert 0 <= trained.test_score <= 1
    assert record(whole / "final")["result"]["parameters"] > 0
    if (whole / "inherited.safetensors").exists():
        again = nasengine.train(
            whole, task=task, settings=[*TRAIN, *small(space), "train.inherit=true"], out=tmp_path / "tuned"
        )
        assert 0 <= again.test_score <= 1
