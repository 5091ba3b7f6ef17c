"""Runs whose memory is exhausted, which a step that raises simulates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nasengine
from nasengine.cost import step_bytes
from nasengine.errors import DeviceMemoryError, ParallelError, SettingError
from nasengine.loop import Loop, Observer, seeded
from nasengine.microbatches import Division
from nasengine.parallel import Ranks
from nasengine.run_directory import Row, Run
from nasengine.search_plan import plan_search
from nasengine.searching import SearchJob
from nasengine.supernet import Supernet
from tests.nasengine.runs import SEARCH, TRAIN, history, record, same, state
from tests.nasengine.test_loop import CONFIG, Toy

ERRORS: list[Callable[[], Exception]] = [
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory."),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes."),
]
SMALL = (*SEARCH, "search.batch_size=16", "search.epochs=2", "search.checkpoint_seconds=0")
LIMITED = (*SMALL, "algo.sweep=stale")
"""Fewer passes a step: trials of memory count every operation of one, which takes long."""


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Hungry(Toy):
    """A job whose steps, from one on, need so many micro-batches; a step that fails has changed the state half-way."""

    def __init__(self, begin: int, needed: int, error: Callable[[], Exception] = MemoryError, most: int = 6) -> None:
        super().__init__()
        self.division = Division(6, most)
        self.begin, self.needed, self.error = begin, needed, error

    def step(self, step: int) -> Any:
        metrics = super().step(step)
        if step >= self.begin and self.division.count < self.needed:
            raise self.error()
        return metrics


def run(path: Path, toy: Toy, notes: Notes, seconds: float = 60.0) -> Any:
    begin = Run.resume if (path / "run.json").exists() else Run.start
    with begin(path, "search", CONFIG, {}) as held, seeded(0, 0):
        return Loop(held, toy, notes, seconds)()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("begin", "seconds", "back"), [(0, 60.0, 0), (2, 60.0, 0), (2, 0.0, 2), (5, 60.0, 4), (8, 60.0, 8)]
)
def test_goes_back_and_on_in_smaller_parts(
    tmp_path: Path, error: Callable[[], Exception], begin: int, seconds: float, back: int
) -> None:
    run(tmp_path / "whole", Toy(), Notes())
    notes = Notes()
    run(tmp_path / "run", Hungry(begin, 3, error), notes, seconds)
    assert same(state(tmp_path / "run"), state(tmp_path / "whole"))
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    assert record(tmp_path / "run")["micro_batches"] == 4 and record(tmp_path / "run")["status"] == "finished"
    told = f"the memory was not enough for step {begin + 1}: back to step {back}"
    parts = [f"batches of 6 are evaluated in {count} micro-batches" for count in (2, 4)]
    assert notes.notes == [told, parts[0], told, parts[1]]


def test_ends_where_batches_cannot_be_divided_further_and_can_go_on(tmp_path: Path) -> None:
    path, notes = tmp_path / "run", Notes()
    with pytest.raises(
        DeviceMemoryError, match=r"^The memory of the device must hold a step of 6 in 6 micro-batches, but"
    ):
        run(path, Hungry(6, 7), notes)
    assert record(path)["status"] == "interrupted" and record(path)["step"] == 4 and record(path)["micro_batches"] == 6
    run(path, Hungry(6, 6), notes)  # more is free now: it begins with the micro-batches that it had
    run(tmp_path / "whole", Toy(), Notes())
    assert same(state(path), state(tmp_path / "whole")) and record(path)["status"] == "finished"


def test_what_is_recorded_holds_for_jobs_that_can_divide(tmp_path: Path) -> None:
    run(tmp_path / "whole", Toy(), Notes())
    with pytest.raises(DeviceMemoryError):
        run(tmp_path / "run", Hungry(1, 7), Notes())
    toy = Hungry(0, 1, most=1)
    run(tmp_path / "run", toy, Notes())
    assert toy.division.count == 1 and same(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_ends_at_once_where_a_job_divides_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeviceMemoryError, match=r"must hold a step of 6, but it did not; what was saved is whole: "):
        run(tmp_path, Hungry(0, 2, most=1), Notes())
    assert "micro_batches" not in record(tmp_path)


def test_ends_where_an_evaluation_does_not_fit(tmp_path: Path) -> None:
    class Large(Toy):
        def end_epoch(self, epoch: int) -> Row:
            raise MemoryError

    with pytest.raises(DeviceMemoryError, match=r"^The memory of the device must hold an evaluation, but it did not; "):
        run(tmp_path, Large(), Notes())
    assert record(tmp_path)["status"] == "interrupted"


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        run(tmp_path, Hungry(0, 2, lambda: RuntimeError("shapes differ")), Notes())


def test_the_peak_is_recorded(ended: Path) -> None:
    assert record(ended)["peak_memory"] > 50e6 and record(ended)["micro_batches"] == 1


# Searches


def limit_for(small: str, count: int) -> int:
    """Bytes that a step takes in so many micro-batches."""
    plan = plan_search(task=small, settings=LIMITED)
    return SearchJob(plan.space, plan.algorithm, plan.task, plan.settings).step_bytes(16, count)


@pytest.fixture(scope="module")
def limited(small: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Notes]:
    limit = f"search.step_memory={limit_for(small, 4)}B"
    out, notes = tmp_path_factory.mktemp("runs") / "limited", Notes()
    nasengine.search(task=small, settings=(*LIMITED, limit), out=out, observer=notes)
    return out, limit, notes


def test_a_search_keeps_its_limit(small: str, limited: tuple[Path, str, Notes]) -> None:
    out, limit, notes = limited
    count = record(out)["micro_batches"]
    assert 2 <= count <= 5 and notes.notes[0].startswith("trials of a step tell how to divide batches, to keep ")
    assert notes.notes[1] == (
        f"batches of 16 are evaluated in {count} micro-batches: batch norms take the statistics of each"
    )
    plan = plan_search(task=small, settings=(*LIMITED, limit))
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings)
    whole = step_bytes(lambda: job.step(0), job.device)
    job.fit_memory()
    divided = step_bytes(lambda: job.step(1), job.device)
    divided -= sum(part.nbytes for batches in (job.train, job.valid) for part in batches[1])  # there before a trial
    limit_of = plan.settings.step_memory or 0  # metrics of a step take some numbers more
    assert job.division.count == count and divided <= limit_of + 1000 < whole


def test_a_limited_search_goes_on_with_the_same_bits(
    small: str, limited: tuple[Path, str, Notes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        pass

    class Stopping(Observer):
        def saved(self, step: int) -> None:
            raise Stopped

    out, limit, _ = limited
    with pytest.raises(Stopped):
        nasengine.search(task=small, settings=(*LIMITED, limit), out=tmp_path, observer=Stopping())
    monkeypatch.setattr(SearchJob, "fit_memory", None)  # it takes what is recorded, and tries nothing
    nasengine.search(out=tmp_path, resume=True)
    assert same(state(tmp_path), state(out)) and history(tmp_path) == history(out)


def test_a_limit_below_the_least_leaves_no_directory(small: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^The limit must leave room for a step, but --step-memory 1,000 is below "):
        nasengine.search(task=small, settings=(*SMALL, "search.step_memory=1KB"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trial_that_does_not_fit(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*arguments: object) -> int:
        raise MemoryError

    monkeypatch.setattr(SearchJob, "step_bytes", exhaust)
    with pytest.raises(
        DeviceMemoryError, match=r"^The memory of the device must hold a trial of search\.step_memory, but"
    ):
        nasengine.search(task=small, settings=(*SMALL, "search.step_memory=1GB"))


def test_a_limit_is_for_one_process(small: str) -> None:
    plan = plan_search(task=small, settings=(*SMALL, "search.step_memory=1GB"))
    with pytest.raises(ParallelError, match=r"^search\.step_memory must be of one process, but there are 2, which "):
        SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, ranks=Ranks(0, 2))


@pytest.mark.parametrize("algorithm", ["deps", "rarts"])
def test_a_search_that_fails_half_way_through_a_step(
    algorithm: str, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the bits of one that was divided from the start: gradients and weights of the failed step are gone."""
    settings = (*SMALL, "algo.warmup=0", "algo.evolution.generations=1") if algorithm == "deps" else SMALL
    forward, failed = Supernet.forward_at, []

    def failing(self: Supernet, *arguments: Any) -> Tensor:
        if not failed:
            failed.append(True)
            raise MemoryError
        return forward(self, *arguments)

    monkeypatch.setattr(Supernet, "forward_at", failing)
    found = nasengine.search(algorithm=algorithm, task=small, settings=settings, out=tmp_path / "failed")
    assert failed and found.record["micro_batches"] == 2
    plan = plan_search(algorithm=algorithm, task=small, settings=settings)
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings)
    job.division.count = 2
    with Run.start(tmp_path / "divided", "search", plan.config, {}) as held, seeded(plan.settings.seed, 0):
        Loop(held, job, Observer(), 0.0)()
    assert same(state(tmp_path / "failed"), state(tmp_path / "divided"))


def test_a_training_goes_on_in_smaller_parts(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, sizes = nn.Linear.forward, []

    def failing(self: nn.Linear, x: Tensor) -> Tensor:
        sizes.append(len(x))
        if self.training and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", failing)
    notes = Notes()
    found = nasengine.train(ended, settings=TRAIN, out=ended / "again", observer=notes)
    assert found.record["micro_batches"] == 4 and max(sizes[2:]) >= 4
    assert notes.notes[-1] == "batches of 16 are evaluated in 4 micro-batches: batch norms take the statistics of each"
