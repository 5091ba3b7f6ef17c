"""What a search is taken to cost, and the epochs that follow from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nasengine.architecture import Architecture
from nasengine.calibrating import Calibration, calibrated, epochs_of, training_seconds
from nasengine.compare_plan import plan_compare
from nasengine.errors import SettingError
from nasengine.judging import Judge
from nasengine.microbatches import Division
from nasengine.searching import SearchJob
from nasengine.supernet import Supernet
from tests.nasengine.comparisons import COMPARE


def test_epochs_that_fit() -> None:
    found = Calibration(step=0.5, steps=10, evaluation=1.0, answer=4.0)
    assert found.epoch == 6.0 and found.seconds(2) == 16.0
    assert [found.epochs(budget) for budget in (9.9, 10.0, 15.9, 16.0, 100.0, 1.0)] == [0, 1, 1, 2, 16, 0]
    other = Calibration(step=0.1, steps=10, evaluation=0.0, answer=0.0)
    assert epochs_of({"slow": found, "fast": other}, 20.0) == {"slow": 2, "fast": 20}
    with pytest.raises(
        SettingError,
        match=r"must fit one epoch of every algorithm, but that of 'slow' takes about 10 s here, and the budget is "
        r"9\.5 s; give --budget 12s or more",
    ):
        epochs_of({"fast": other, "slow": found}, 9.5)


def test_a_search_is_timed_and_leaves_no_trace(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All judgements of the answer are counted, some of them are made."""
    plan = plan_compare(algorithms="random:samples=5,rarts", task=small, budget=10, settings=COMPARE)
    steps, judged, whole = list[int](), list[Architecture](), Judge.subnet
    step = SearchJob.step

    def counted(job: SearchJob, number: int) -> dict[str, torch.Tensor]:
        steps.append(number)
        assert torch.get_num_threads() == 1
        return step(job, number)

    def subnet(judge: Judge, supernet: Supernet, architecture: Architecture) -> float:
        judged.append(architecture)
        return whole(judge, supernet, architecture)

    monkeypatch.setattr(SearchJob, "step", counted)
    monkeypatch.setattr(Judge, "subnet", subnet)
    monkeypatch.setattr("nasengine.calibrating._clock", _ticking())
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = calibrated(plan, plan.contenders[0], 2)
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
    assert found.steps == 2 and steps[:2] == [0, 1] and steps[2:] == list(range(6))
    assert found.step == 1.0
    assert len(judged) == 1 + 4 and len(set(judged[1:])) == 4  # of the epoch, and of the answer
    assert found.evaluation == 1.0 and found.answer == 1.0 + (1.0 + 1 / 4 * 5) + 1.0
    assert training_seconds(plan, 1) > 0


def test_a_search_is_timed_as_its_limit_divides_it(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_compare(
        algorithms="random,rarts", task=small, budget=1000, settings=(*COMPARE, "search.step_memory=1GB")
    )
    counts, step = list[int](), SearchJob.step

    def fitted(division: Division, *arguments: object) -> None:
        division.count = 2

    def counted(job: SearchJob, number: int) -> dict[str, torch.Tensor]:
        counts.append(job.division.count)
        return step(job, number)

    monkeypatch.setattr(Division, "fit", fitted)
    monkeypatch.setattr(SearchJob, "step", counted)
    monkeypatch.setattr("nasengine.calibrating._clock", _ticking())
    calibrated(plan, plan.contenders[0], 1)
    assert set(counts) == {2}


@pytest.mark.parametrize(
    ("budget", "steps", "told"),
    [
        (1.0, 2 + 4, "about 2 s here in its steps alone, and the budget is 1 s; give a --budget well"),
        (1.9, 2 + 6, r"about 2 s here in its steps alone, and the budget is 1\.9 s; give a --budget well"),
        (3.0, 2 + 6, "about 4 s here without what its answer takes, and the budget is 3 s; give a --budget well"),
    ],
)
def test_a_budget_too_small_is_refused_by_the_first_measurement_that_shows_it(
    small: str, monkeypatch: pytest.MonkeyPatch, budget: float, steps: int, told: str
) -> None:
    plan, taken = plan_compare(algorithms="rarts,darts", task=small, budget=budget, settings=COMPARE), list[int]()
    step = SearchJob.step

    def counted(job: SearchJob, number: int) -> dict[str, torch.Tensor]:
        taken.append(number)
        return step(job, number)

    monkeypatch.setattr(SearchJob, "step", counted)
    monkeypatch.setattr("nasengine.calibrating._deriving", lambda job: pytest.fail("an answer was derived"))
    monkeypatch.setattr("nasengine.calibrating._clock", _ticking())
    must = "A budget must fit one epoch of every algorithm, but that of 'rarts' takes "
    with pytest.raises(SettingError, match=rf"^{must}{told} above that\.$"):
        calibrated(plan, plan.contenders[0], 1)
    assert len(taken) == steps


def _ticking() -> Callable[[], float]:
    """Every look at it a second later."""
    ticks = iter(range(10_000))
    return lambda: float(next(ticks))
