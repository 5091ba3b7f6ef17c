"""A comparison: equal epochs of budget for all, every seed reported, gone on with wherever it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import nasengine
from nasengine.comparing import CompareObserver, CompareResult
from nasengine.errors import DivergedError, InterruptedRun, RunError, SettingError
from nasengine.loop import Observer
from nasengine.task import load_task
from nasengine.training import TrainJob
from nasengine.workers import Event, Work
from tests.nasengine.comparisons import ALGORITHMS, COMPARE, known_cost, tables
from tests.nasengine.lives import begin_life
from tests.nasengine.runs import assert_same_run, record, result

RUNS = ("darts/seed-0", "darts/seed-1", "random-samples=2/seed-0", "random-samples=2/seed-1")


def compared(small: Any, out: Path, **more: Any) -> CompareResult:
    return nasengine.compare("darts", ALGORITHMS, small, seeds=2, budget=5, settings=COMPARE, out=out, **more)


@pytest.fixture(scope="module")
def _whole(small: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompareResult]:
    with pytest.MonkeyPatch.context() as patch:
        known_cost(patch)
        yield compared(small, tmp_path_factory.mktemp("compared") / "run")


@pytest.fixture
def whole(_whole: CompareResult, tmp_path: Path) -> CompareResult:
    """A finished comparison in a directory of its own."""
    path = Path(shutil.copytree(_whole.path, tmp_path / "whole"))
    return replace(_whole, path=path)


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return known_cost(monkeypatch)


def test_every_search_has_the_epochs_of_the_budget_and_every_network_one_test(whole: CompareResult) -> None:
    table = whole.table
    assert list(zip(table["algorithm"], table["seed"], table["epochs"], strict=True)) == [
        *(("darts", seed, 1) for seed in range(2)),
        *(("random:samples=2", seed, 2) for seed in range(2)),
    ]
    assert set(table["status"]) == {"finished"}
    for row, run in zip(table.to_dict("records"), RUNS, strict=True):
        search, train = record(whole.path / run), record(whole.path / run / "final")
        assert search["config"]["search"]["seed"] == train["config"]["train"]["seed"] == row["seed"]
        assert (search["config"]["search"]["epochs"], train["config"]["train"]["epochs"]) == (row["epochs"], 1)
        assert train["config"]["architecture"] == search["result"]["architecture"] == row["architecture"]
        assert row["derived_accuracy"] == search["result"]["derived_accuracy"]
        assert row["test_accuracy"] == train["result"]["test_accuracy"] and "valid_accuracy" not in train["result"]
        assert row["search_seconds"] == search["result"]["seconds"] and row["train_seconds"] > 0
        assert row["parameters"] == train["result"]["parameters"]
    for summary in whole.summaries:
        rows = table[table["algorithm"] == summary.label]
        assert summary.scores == tuple(rows["test_accuracy"])


def test_the_searches_are_those_of_the_verb(whole: CompareResult, small: str, tmp_path: Path) -> None:
    """With the same bits: the schedule ends where the epochs of the budget end."""
    settings = [text for text in COMPARE if text.startswith(("space.", "search."))]
    settings += ["search.epochs=2", "search.seed=1", "algo.samples=2"]
    nasengine.search("darts", "random", small, settings=settings, out=tmp_path / "alone")
    assert_same_run(tmp_path / "alone", whole.path / RUNS[3])


def test_curves_have_every_epoch_and_the_answer_on_one_axis(whole: CompareResult) -> None:
    curves = pd.read_csv(whole.path / "curves.csv")
    assert list(curves)[:6] == ["algorithm", "seed", "at", "epoch", "seconds", "seconds_in_steps"]
    assert len(curves) == 2 * (1 + 1) + 2 * (2 + 1)
    for (label, seed), rows in curves.groupby(["algorithm", "seed"]):
        assert list(rows["at"]) == ["epoch"] * (len(rows) - 1) + ["end"]
        assert list(rows["seconds"]) == sorted(rows["seconds"])
        (row,) = [r for r in tables(whole.path) if r["algorithm"] == label and r["seed"] == seed]
        assert rows["derived_accuracy"].iloc[-1] == row["derived_accuracy"]


def test_what_is_kept_of_it(whole: CompareResult) -> None:
    kept = record(whole.path)
    assert kept["status"] == "finished" and kept["verb"] == "compare"
    assert set(kept["calibration"]) == {"darts", "random:samples=2"}
    assert list(kept["stages"]) == ["calibrate", "search", "train"]
    found = kept["result"]
    assert [one["label"] for one in found["algorithms"]] == ["darts", "random:samples=2"]
    assert found["differences"][0]["one"] == "random:samples=2" and len(found["advice"]) >= 3
    assert (whole.path / "compare.svg").read_text().startswith("<?xml")
    assert (whole.path / "compare.png").stat().st_size > 10_000


class _Stopping(CompareObserver):
    """Asks the comparison to stop after some works, or within a run."""

    def __init__(self, works: int = -1, step: int = -1) -> None:
        self.left, self.search, self.training = works, _StopAt(step), _StopAt(-1)

    def works(self, work: Work, event: Event, done: int, total: int) -> None:  # type: ignore[override]
        self.left -= event == "finished"
        if self.left == 0:
            raise KeyboardInterrupt


class _StopAt(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_stopped_anywhere_it_goes_on(whole: CompareResult, small: str, tmp_path: Path, calibrations: list[str]) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(InterruptedRun, match=r"Stopped by SIGINT after step 1 of 2 in the stage .search., all is"):
        compared(small, out, observer=_Stopping(step=1))
    assert record(out)["status"] == "interrupted" and calibrations == ["darts", "random:samples=2"]
    for works in (3, 2):
        with pytest.raises(InterruptedRun, match=r"Stopped in the stage '(search|train)', all is saved"):
            nasengine.compare(out=out, resume=True, observer=_Stopping(works=works))
    assert (out / "darts/seed-0/final").exists() and not (out / "compare.csv").exists()
    nasengine.compare(out=out, resume=True)
    assert len(calibrations) == 2, "what was calibrated is not calibrated again"
    assert tables(out) == tables(whole.path)
    for run in RUNS:
        for place in (run, f"{run}/final"):
            assert_same_run(whole.path / place, out / place)


def test_more_seeds_are_added_to_what_is_there(whole: CompareResult, calibrations: list[str]) -> None:
    before = {run: (whole.path / run / "run.json").stat().st_mtime_ns for run in RUNS}
    with pytest.raises(RunError, match=r"is finished: nothing is left to go on with; ask for more by --seeds alone"):
        nasengine.compare(out=whole.path, resume=True)
    with pytest.raises(InterruptedRun):
        nasengine.compare(out=whole.path, seeds=3, resume=True, observer=_Stopping(works=1))
    with pytest.raises(RunError, match=r"must go on with its own configuration, but compare\.budget is 5\.0"):
        nasengine.compare(out=whole.path, budget=7, resume=True)
    more = nasengine.compare(out=whole.path, resume=True)
    assert len(more.table) == 6 and len(more.summaries[0].scores) == 3 and calibrations == []
    assert {run: (whole.path / run / "run.json").stat().st_mtime_ns for run in RUNS} == before


def test_killed_with_its_workers_under_way_it_goes_on(
    whole: CompareResult, small: str, tmp_path: Path, calibrations: list[str]
) -> None:
    out = tmp_path / "killed"
    with pytest.raises(InterruptedRun):
        compared(small, out, observer=_Stopping(step=1))
    process = begin_life(["compare", "--out", str(out), "--workers", "2", "--resume"], tmp_path / "said")
    deadline = time.monotonic() + 120
    while not (out / RUNS[1] / "run.json").exists() and process.exitcode is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and record(out)["status"] == "running", (tmp_path / "said").read_text()
    nasengine.compare(out=out, resume=True)
    assert tables(out) == tables(whole.path)
    for run in RUNS:
        assert_same_run(whole.path / run, out / run)


def test_a_budget_below_one_epoch_leaves_the_directory_free(
    small: str, tmp_path: Path, calibrations: list[str]
) -> None:
    given = {"settings": COMPARE, "out": tmp_path / "run"}
    with pytest.raises(SettingError, match=r"one epoch of every algorithm, but that of 'darts' takes about 4 s here, "):
        nasengine.compare("darts", ALGORITHMS, small, budget="3s", **given)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InterruptedRun):
        nasengine.compare("darts", ALGORITHMS, small, budget="4s", observer=_Stopping(works=1), **given)


def test_a_task_in_memory_is_compared_in_this_process(small: str, tmp_path: Path, calibrations: list[str]) -> None:
    task = load_task(small)
    with pytest.raises(SettingError, match=r"Other processes must find space, data and the like by name"):
        compared(task, tmp_path / "run", workers=2)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InterruptedRun):
        compared(task, tmp_path / "run", observer=_Stopping(works=1))
    assert record(tmp_path / "run" / RUNS[0])["status"] == "finished"


def test_what_diverges_is_left_out_and_told(whole: CompareResult, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One training of four gives no number; its row stays, and the mean is of the others."""
    step, path = TrainJob.step, whole.path
    shutil.rmtree(path / RUNS[1] / "final")

    def lost(job: TrainJob, number: int) -> dict[str, torch.Tensor]:
        return {name: value * float("nan") for name, value in step(job, number).items()}

    monkeypatch.setattr(TrainJob, "step", lost)
    kept = record(path)
    (path / "run.json").write_text(json.dumps({**kept, "status": "interrupted"}))
    again = nasengine.compare(out=path, resume=True)
    assert list(again.table["status"]) == ["finished", "training diverged", "finished", "finished"]
    assert again.summaries[0].scores == tuple(again.table["test_accuracy"][:1])
    assert "darts diverged with 1 of its seeds, which are left out of its mean." in record(path)["result"]["advice"]
    assert result(path)["differences"][0]["low"] is None
    for run in RUNS:
        shutil.rmtree(path / run / "final")
    (path / "run.json").write_text(json.dumps({**kept, "status": "interrupted"}))
    with pytest.raises(DivergedError, match=r"must stay finite, but all 4 diverged; start a new comparison"):
        nasengine.compare(out=path, resume=True)
    assert record(path)["status"] == "diverged"
