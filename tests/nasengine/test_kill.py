"""A run that is stopped anywhere and resumed ends with the same bits as one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

import nasengine
from nasengine.errors import InterruptedRun
from nasengine.loop import Observer
from tests.nasengine.lives import begin_life
from tests.nasengine.runs import GENOTYPE, SEARCH, TINY, TRAIN, assert_same_run, flags, record

KILLS = 10
ROOT = Path(nasengine.__file__).parents[1]
LIVES = {
    "search": [
        "search",
        *flags((*TINY, "algo.sweep=stale", "search.eval_size=100", "search.checkpoint_seconds=0")),
        *("--data", "npz:{data}", "--epochs", "4", "--batch-size", "16", "--device", "cpu"),
    ],
    "train": [
        *("train", "--genotype", GENOTYPE),
        *("--data", "npz:{data}", "--epochs", "3", "--batch-size", "24", "--device", "cpu"),
        *flags((*TINY, "data.cutout=3", "train.drop_path=0.4", "train.checkpoint_seconds=0")),
    ],
}


def next_life(arguments: list[str], out: Path) -> ForkServerProcess:
    """Begins a life, which goes on where the last one ended."""
    if (out / "run.json").exists():
        verb = arguments[0]
        arguments = [*([verb] if verb == "train" else arguments), "--resume"]  # all else of a training is in its run
    return begin_life([*arguments, "--out", str(out)], out.with_suffix(".said"))


def wait_for(process: ForkServerProcess, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while process.exitcode is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def saved_step(out: Path) -> int:
    try:
        return int(json.loads((out / "run.json").read_text()).get("step", 0))
    except FileNotFoundError:
        return 0


def kill_at_random(arguments: list[str], out: Path, rng: random.Random) -> str:
    """Starts a life and kills it: in a fifth of cases at any time of its start, else after some further steps."""
    process, before = next_life(arguments, out), saved_step(out)
    early, delay, steps = rng.random() < 0.2, rng.random(), rng.randint(1, 3)
    if early:
        time.sleep(0.2 * delay)
    else:
        wait_for(process, lambda: saved_step(out) >= before + steps)
        time.sleep(0.03 * delay)  # into a step, or the writing of a checkpoint
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), out.with_suffix(".said").read_text()
    return f"{'start' if early else 'steps'}: {before} -> {saved_step(out)}, exit code {process.exitcode}"


@pytest.mark.parametrize("verb", ["search", "train"])
def test_killed_ten_times_ends_with_the_same_bits(verb: str, tmp_path: Path) -> None:
    """Each time it was a process of its own; one that is not killed has an interpreter of its own, too."""
    rng, labels = np.random.default_rng(0), np.arange(440) % 4
    np.savez(tmp_path / "data.npz", x=rng.integers(256, size=(440, 8, 8), dtype=np.uint8), y=labels)
    arguments = [text.replace("{data}", str(tmp_path / "data.npz")) for text in LIVES[verb]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = subprocess.Popen(
        [sys.executable, "-m", "nasengine", *arguments, "--out", str(whole)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    instants = random.Random(20240607)
    lives = [kill_at_random(arguments, killed, instants) for _ in range(KILLS)]
    assert record(killed)["status"] != "finished", lives
    assert sum("steps" in life and "-9" in life for life in lives) >= 5, lives
    last = next_life(arguments, killed)
    _, errors = uninterrupted.communicate(timeout=120)
    assert uninterrupted.returncode == 0, errors.decode()
    last.join(120)
    assert last.exitcode == 0, killed.with_suffix(".said").read_text()
    assert_same_run(whole, killed)
    assert not list(killed.glob(".partial*"))


class _Interrupting(Observer):
    """Asks the run to stop after its first step, as Ctrl-C does."""

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def until_finished(begin: Callable[[bool], object], out: Path) -> int:
    """Resumes a run until it ends; how often it was stopped."""
    for stops in range(100):
        try:
            begin((out / "run.json").exists())
        except InterruptedRun:
            assert record(out)["status"] == "interrupted"
        else:
            return stops
    raise AssertionError("the run does not end")


@pytest.mark.parametrize(
    "algorithm",
    [
        ("darts", "algo.order=first"),
        ("darts", "algo.order=second"),
        ("rarts", "algo.sweep=exact"),
        ("rarts", "algo.sweep=stale"),
    ],
    ids=" ".join,
)
def test_search_stopped_after_every_step(algorithm: tuple[str, str], small: str, tmp_path: Path) -> None:
    name, setting = algorithm
    settings = (*SEARCH, setting)
    nasengine.search(algorithm=name, task=small, settings=settings, out=tmp_path / "whole")

    def begin(resume: bool) -> None:
        out = tmp_path / "stopped"
        observer = _Interrupting()
        nasengine.search(algorithm=name, task=small, settings=settings, out=out, resume=resume, observer=observer)

    assert until_finished(begin, tmp_path / "stopped") == 4
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_training_stopped_after_every_step(small: str, tmp_path: Path) -> None:
    settings = ("space.nodes=1", *TRAIN, "train.drop_path=0.5", "data.cutout=3")
    nasengine.train(genotype=GENOTYPE, task=small, settings=settings, out=tmp_path / "whole")

    def begin(resume: bool) -> None:
        out, observer = tmp_path / "stopped", _Interrupting()
        if resume:
            nasengine.train(out=out, resume=True, observer=observer)
        else:
            nasengine.train(genotype=GENOTYPE, task=small, settings=settings, out=out, observer=observer)

    assert until_finished(begin, tmp_path / "stopped") == 4
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
