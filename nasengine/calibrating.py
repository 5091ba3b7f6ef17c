"""What a search takes on this machine, from a few real steps; so that searches can be given equal seconds."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from nasengine import cost
from nasengine.architecture import Architecture
from nasengine.compare_plan import ComparePlan, Contender
from nasengine.drawing import draw
from nasengine.errors import SettingError
from nasengine.evolution import Budget
from nasengine.loop import not_finite, seeded
from nasengine.searching import DERIVE, TRAIN, SearchJob
from nasengine.seeding import generator
from nasengine.training import TrainJob
from nasengine.workers import LOCAL_THREADS

_SHARE, _MOST_SECONDS = 0.05, 10.0  # of the budget, and at all, for timing the steps of one algorithm
_FEWEST, _MOST = 6, 100
_TRIAL: Final = 2
_clock = time.perf_counter
_PROBE_BATCH, _PROBES = 8, 3
_JUDGED: Final = 4
_LONG: Final = 5.0  # seconds of a step


@dataclass(frozen=True)
class Calibration:
    """What a search takes.

    Attributes:
        step: seconds of a step, the mean over a schedule of few steps that has all phases of a whole one.
        steps: of an epoch.
        evaluation: seconds in which the end of an epoch is judged and saved.
        answer: seconds in which the architecture is found at the end, from the supernet.
    """

    step: float
    steps: int
    evaluation: float
    answer: float

    @property
    def epoch(self) -> float:
        """Seconds of an epoch."""
        return self.step * self.steps + self.evaluation

    def seconds(self, epochs: int) -> float:
        """Of a whole search."""
        return epochs * self.epoch + self.answer

    def epochs(self, budget: float) -> int:
        """How many end within the budget, which may be 0."""
        return max(0, int((budget - self.answer) / self.epoch))


def calibrated(plan: ComparePlan, contender: Contender, workers: int | str) -> Calibration:
    """Times the search of one algorithm, alone on the machine, with as many threads as it will have.

    Raises:
        SettingError: not even one epoch fits the budget, as soon as that is known.
    """
    budget, label = plan.settings.budget, contender.label
    with _threads(workers), seeded(plan.search.seed, TRAIN):
        job = SearchJob(plan.space, contender.algorithm, plan.task, plan.search_settings(1, plan.search.seed))
        job.fit_memory()
        rough = _steps(job, _TRIAL)  # the first steps of a process are slow
        allowed = min(_MOST_SECONDS, _SHARE * budget)
        step = _steps(job, min(_MOST, max(_FEWEST, round(allowed / rough))), partial(_check_steps, budget, label))
        evaluation = _evaluation(job)
        _check(budget, label, step * job.steps_per_epoch + 2 * evaluation, " without what its answer takes")
        if evaluation < allowed:
            evaluation = _evaluation(job)
        found = Calibration(step, job.steps_per_epoch, evaluation, evaluation + _deriving(job) + _drawing(job))
        epochs_of({label: found}, budget)
        return found


def epochs_of(calibrations: Mapping[str, Calibration], budget: float) -> dict[str, int]:
    """The epochs that fit a budget in seconds, by label. Raises SettingError where not even one does."""
    label, slowest = max(calibrations.items(), key=lambda item: item[1].seconds(1))
    _check(budget, label, slowest.seconds(1))
    return {label: calibration.epochs(budget) for label, calibration in calibrations.items()}


def _check(budget: float, label: str, seconds: float, without: str = "") -> None:
    """Raises SettingError where a search of one epoch takes longer than the budget."""
    if seconds > budget:
        least = int(seconds * 1.1) + 1  # with some room, for no two calibrations are the same
        advice = "a --budget well above that" if without else f"--budget {least}s or more"
        raise SettingError(
            f"A budget must fit one epoch of every algorithm, but that of {label!r} takes about {seconds:.3g} s "
            f"here{without}, and the budget is {budget:.3g} s; give {advice}."
        )


def _check_steps(budget: float, label: str, seconds: float, done: int, count: int, epoch: int) -> None:
    """Raises SettingError once the steps that are done say that those of an epoch take longer than the budget."""
    if seconds / count * epoch > budget:  # even if the steps to come took no time
        _check(budget, label, seconds / done * epoch, " in its steps alone")


def training_seconds(plan: ComparePlan, workers: int | str) -> float:
    """About how long the final training of a random architecture takes, without its test.

    Of a large network the step of a small batch is timed, and scaled.
    """
    with _threads(workers), seeded(plan.train.seed, TRAIN):
        choices = plan.final.choices(plan.task.shapes)
        architecture = plan.final.sample(choices, generator(plan.train.seed))
        whole = TrainJob(plan.final, architecture, plan.task, plan.train)
        batch = min(_PROBE_BATCH, plan.train.batch_size)
        probe = TrainJob(plan.final, architecture, plan.task, replace(plan.train, batch_size=batch))
        step = cost.step_seconds(partial(probe.step, 0), _PROBES) * plan.train.batch_size / batch
        if step < _LONG:
            step = cost.step_seconds(partial(whole.step, 0), _PROBES)
        return step * whole.steps_per_epoch * plan.train.epochs


def _steps(job: SearchJob, count: int, check: Callable[[float, int, int, int], object] = lambda *_: None) -> float:
    """Seconds of a step, of a search of `count` steps; `check` sees (seconds, done, count, steps of an epoch)."""
    supernet = job.algorithm.supernet(job.state)
    job.state = job.algorithm.init(supernet, generator(job.settings.seed), count)
    start, spent = _clock(), 0.0
    for step in range(count):
        for value in job.step(step).values():
            value.item()  # waits for the device
        spent = _clock() - start
        check(spent, step + 1, count, job.steps_per_epoch)
    return spent / count


def _evaluation(job: SearchJob) -> float:
    start = _clock()
    job.end_epoch(1)
    not_finite(job.state_dict())
    torch.save(job.state_dict(), io.BytesIO())
    return _clock() - start


def _deriving(job: SearchJob) -> float:
    """Seconds in which the algorithm derives: as it does now, with every judgement counted and a few timed."""
    counted: list[Architecture] = []

    def count(architecture: Architecture) -> float:
        counted.append(architecture)
        return 0.0

    start = _clock()
    job.algorithm.derive(job.state, Budget(job.limits, job.costs, count, generator(job.settings.seed, DERIVE)))
    deriving, supernet = _clock() - start, job.algorithm.supernet(job.state)
    some = counted[:: max(1, len(counted) // _JUDGED)][:_JUDGED]
    start = _clock()
    for architecture in some:
        job.judge.subnet(supernet, architecture)
    return deriving + (_clock() - start) / max(1, len(some)) * len(counted)


def _drawing(job: SearchJob) -> float:
    """Seconds in which the pictures of an answer are drawn."""
    graphs, start = job.space.graphs(job.algorithm.derive(job.state)), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("svg", "svg", "png"):  # the first one loads matplotlib
            draw(graphs, Path(folder) / f"cells.{suffix}")
            start = start or _clock()
    return _clock() - start


@contextmanager
def _threads(workers: int | str) -> Iterator[None]:
    """As many threads as a search has: those of this process, or of a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if workers == 1 else LOCAL_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.cuda.empty_cache()  # workers have the same GPU
