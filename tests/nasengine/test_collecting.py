"""Labels for predictors: the same whatever ran before them, of validation scores, whole at any instant."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import nasengine
from nasengine.architecture import Architecture, Choice
from nasengine.collecting import collect, plan_collection, read_labels
from nasengine.config import resolve_space, resolve_task
from nasengine.errors import ArchitectureError, DataError, InterruptedRun, NasengineError, RunError, SettingError
from nasengine.labelling import chance
from nasengine.loop import Observer, seeded
from nasengine.registry import SPACES
from nasengine.task import Dataset, Shapes, Task
from nasengine.training import TrainJob
from search_spaces.nasbench101 import NASBench101
from tests.nasengine.dense import Dense
from tests.nasengine.lives import begin_life
from tests.nasengine.runs import flags, record
from tests.nasengine.tasks import float_dataset, regression_dataset
from tests.search_spaces.test_contract import SMALL

SPACE = ("space.channels=6", "space.stacks=2", "space.cells=1")
# On the data of the fixture `small`, a training takes 4 steps in 2 epochs, a label 8 steps.
COLLECT = (
    *(*SPACE, "collect.epochs=2", "collect.batch_size=8", "collect.lr=0.3", "collect.repeats=2"),
    "collect.device=cpu",
)


def rows(path: Path) -> list[dict[str, str]]:
    """labels.csv without the clock."""
    with (path / "labels.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def scores(path: Path) -> list[float]:
    return [float(row["score"]) for row in rows(path)]


def assert_same(one: Path, other: Path) -> None:
    """Both have the same labels, history and result but for the clocks."""
    assert rows(one) == rows(other)
    found = []
    for path in (one, other):
        with (path / "history.csv").open(newline="") as file:
            history = [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]
        result = {name: value for name, value in record(path)["result"].items() if "seconds" not in name}
        found.append((history, result, record(path)["status"]))
    assert found[0] == found[1] and found[0][2] == "finished"


class _Stopping(Observer):
    """Stops after a step as Ctrl-C does, or as a crash does."""

    def __init__(self, step: int | None = None, crash: bool = False) -> None:
        self.at, self.crash = step, crash

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        if self.at in (None, step):
            if self.crash:
                raise MemoryError
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels in one go."""
    out = tmp_path_factory.mktemp("labels") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        collect("nasbench101", small, count=3, settings=COLLECT, out=out)
    return out


def test_what_is_written(whole: Path) -> None:
    found = rows(whole)
    assert len({row["hash"] for row in found}) == 3 and len(set(scores(whole))) == 3
    assert [row["epochs"] for row in found] == ["2"] * 3
    table = read_labels(whole)
    assert list(table) == ["hash", "matrix", "operations", "score", "epochs", "seconds", "parameters"]
    assert table["score"].tolist() == scores(whole) and (table["seconds"] > 0).all()
    space = NASBench101(channels=6, stacks=2, cells=1)
    for architecture, parameters in zip(space.from_table(table), table["parameters"], strict=True):
        network = space.build(architecture, Shapes((1, 8, 8), 4))
        assert parameters == sum(weight.numel() for weight in network.parameters())
    result = record(whole)["result"]
    assert result["labels"] == 3 and result["diverged"] == 0
    assert [result[f"{name}_score"] for name in ("best", "median", "worst")] == sorted(scores(whole), reverse=True)
    assert record(whole)["verb"] == "collect" and not list(whole.glob(".partial*"))


def test_stopped_after_every_step(whole: Path, small: str, tmp_path: Path) -> None:
    out, stops = tmp_path / "out", 0
    with pytest.raises(InterruptedRun, match="after step 1 of 24"):
        collect("nasbench101", small, count=3, settings=COLLECT, out=out, observer=_Stopping())
    while record(out)["status"] != "finished":
        try:
            collect(out=out, resume=True, observer=_Stopping())
        except InterruptedRun:
            stops += 1
    assert stops == 23
    assert_same(whole, out)


@pytest.mark.parametrize("step", [3, 8, 9, 21])
def test_a_crash_loses_the_steps_since_the_last_label(step: int, whole: Path, small: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MemoryError):
        collect("nasbench101", small, count=3, settings=COLLECT, out=out, observer=_Stopping(step, crash=True))
    done = (step - 1) // 8
    assert not done or rows(out) == rows(whole)[:done]
    collect(out=out, resume=True, observer=Observer())
    assert_same(whole, out)


def test_rows_of_others_are_not_written_over(small: str, tmp_path: Path) -> None:
    collect("nasbench101", small, count=1, settings=COLLECT, out=tmp_path / "out")
    file = tmp_path / "out" / "labels.csv"
    mine = file.read_text() + "0" * 32 + ',0100,"input,output",0.9,1,1.0,10\n'
    file.write_text(mine)
    with pytest.raises(RunError, match=r"only labels of its collection.*row 2 is another's; move what you added"):
        collect(count=2, out=tmp_path / "out", resume=True)
    assert file.read_text() == mine


def test_more_labels_are_those_of_one_go(whole: Path, small: str, tmp_path: Path) -> None:
    collect("nasbench101", small, count=1, settings=COLLECT, out=tmp_path / "out")
    assert rows(tmp_path / "out") == rows(whole)[:1]
    with pytest.raises(InterruptedRun):
        collect(count=2, out=tmp_path / "out", resume=True, observer=_Stopping(11))
    result = collect(count=3, out=tmp_path / "out", resume=True)  # it was not finished
    assert_same(whole, tmp_path / "out")
    assert result.record["config"] == record(whole)["config"] and result.labels == tmp_path / "out" / "labels.csv"


def test_a_label_depends_on_its_number_alone(whole: Path, small: str) -> None:
    plan = plan_collection("nasbench101", small, settings=(*COLLECT, "collect.count=3"))
    job = plan.job()
    torch.manual_seed(123)
    for step in range(16, 24):
        job.step(step)
    assert job.end_epoch(3)["score"] == scores(whole)[2]


class _Random(Dense):
    """Networks that draw random numbers as they run."""

    def network(self, shapes: Shapes) -> nn.Module:
        return nn.Sequential(super().network(shapes), nn.Dropout(0.3))


def test_also_where_the_network_draws_random_numbers(tmp_path: Path) -> None:
    settings = ("collect.epochs=4", "collect.batch_size=5", "collect.lr=0.05", "collect.device=cpu")
    result = collect(_Random(), regression_dataset(), count=2, settings=settings, out=tmp_path / "out")
    plan = plan_collection(_Random(), regression_dataset(), settings=(*settings, "collect.count=2"))
    job = plan.job()
    torch.manual_seed(123)
    for step in range(16, 32):
        job.step(step)
    assert job.end_epoch(2)["score"] == read_labels(result.path)["score"][1]


def test_a_label_is_the_mean_of_its_trainings(whole: Path, small: str) -> None:
    plan = plan_collection("nasbench101", small, settings=(*COLLECT, "collect.count=1"))
    job = plan.job()
    data, single, starts = plan.task.dataset, [], []
    for repeat in range(2):
        with seeded(0, 0):
            training = job.begin(0, repeat)
            starts.append(next(training.network.parameters()).detach().clone())
            for step in range(4):
                training.step(step)
        network = training.network.eval()
        mean, std = plan.task.normalisation
        inputs = (data.train_inputs[job.valid_indices] - mean) / std
        guesses = network(inputs).argmax(1)
        single.append(float((guesses == data.train_targets[job.valid_indices]).double().mean()))
    assert not torch.equal(*starts) and statistics.fmean(single) == pytest.approx(scores(whole)[0])
    assert len(training.batches) == 2 and set(job.train_indices.tolist()).isdisjoint(job.valid_indices.tolist())


def test_killed_at_random(whole: Path, small: str, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = ["--space", "nasbench101", "--data", small, "--count", "3", *flags(COLLECT)]
    arguments += ["--set", "collect.checkpoint_seconds=0"]
    for kill in range(4):
        rest = ["--resume"] if (out / "run.json").exists() else arguments
        process = begin_life(["collect", "--out", str(out), *rest], tmp_path / "said")
        deadline, wanted = time.monotonic() + 60, record(out).get("step", 0) + 5 if kill and rest == ["--resume"] else 2
        while kill < 3 and process.exitcode is None and time.monotonic() < deadline:
            if (out / "run.json").exists() and record(out).get("step", 0) >= wanted:
                process.kill()
            if (out / "labels.csv").exists():
                assert rows(out) == rows(whole)[: len(rows(out))]
            time.sleep(0.002)
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if kill < 3 else 0), (tmp_path / "said").read_text()
    assert_same(whole, out)


@pytest.mark.parametrize("damage", ["torn", "gone", "ahead"])
def test_the_file_of_labels_is_put_right(damage: str, whole: Path, small: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InterruptedRun):
        collect("nasbench101", small, count=3, settings=COLLECT, out=out, observer=_Stopping(17))
    text = (out / "labels.csv").read_text()
    if damage == "gone":
        (out / "labels.csv").unlink()
    else:
        (out / "labels.csv").write_text(text[:-9] if damage == "torn" else text + text.splitlines()[1] + "\n")
    collect(out=out, resume=True)
    assert_same(whole, out)


def test_the_test_set_has_no_part_in_it(whole: Path, small: str, tmp_path: Path) -> None:
    task, _ = resolve_task(small, {}, {})
    data = task.dataset
    other = dataclasses.replace(
        data, test_inputs=255 - data.test_inputs, test_targets=(data.test_targets + 1) % len(data.classes)
    )
    collect("nasbench101", Task(dataset=other, settings=task.settings), count=2, settings=COLLECT, out=tmp_path / "o")
    assert rows(tmp_path / "o") == rows(whole)[:2]
    fewer = dataclasses.replace(data, train_targets=data.train_targets.flip(0))
    collect("nasbench101", Task(dataset=fewer, settings=task.settings), count=2, settings=COLLECT, out=tmp_path / "p")
    assert scores(tmp_path / "p") != scores(whole)[:2]


def test_a_seed_draws_other_architectures(whole: Path, small: str, tmp_path: Path) -> None:
    collect("nasbench101", small, count=2, settings=(*COLLECT, "collect.seed=1"), out=tmp_path / "out")
    first, second = ({row["hash"] for row in rows(path)} for path in (whole, tmp_path / "out"))
    assert first.isdisjoint(second)


def test_the_callers_random_state_is_left_alone(small: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    collect("nasbench101", small, count=1, settings=COLLECT, out=tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", SPACES.names())
def test_every_space(name: str, small: str, tmp_path: Path) -> None:
    settings = ("collect.epochs=1", "collect.batch_size=8", "collect.device=cpu")
    result = collect(SPACES[name](**SMALL.get(name, {})), small, count=2, settings=settings, out=tmp_path / "out")
    table, space = read_labels(result.path), resolve_space(None, result.record["config"]["space"], {})
    assert len(table) == 2 and table["score"].between(0, 1).all() and (table["parameters"] > 0).all()
    assert len({space.write(architecture) for architecture in space.from_table(table)}) == 2


# Divergence, measures


@pytest.mark.parametrize("data", [float_dataset(), regression_dataset()], ids=["classes", "regression"])
def test_any_measure(data: Dataset, tmp_path: Path) -> None:
    settings = ("collect.epochs=30", "collect.batch_size=5", "collect.lr=0.1", "collect.device=cpu")
    result = collect(Dense(), data, count=3, settings=settings, out=tmp_path / "out")
    found = read_labels(result.labels)["score"]
    task = Task(dataset=data)
    if data.is_regression:
        train, valid = task.split(0)
        mean = data.train_targets[train].mean(0)
        constant = -float((data.train_targets[valid] - mean).square().mean())
        assert chance(task, train, valid) == pytest.approx(constant)
        assert (found < 0).all() and found.max() > constant / 2
    else:
        assert chance(task, *task.split(0)) == 0.5 and found.between(0, 1).all()


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_training_that_diverges_counts_as_chance(
    at: int, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, begun = TrainJob.step, list[TrainJob]()

    def spoilt(job: TrainJob, number: int) -> object:
        if number == 0:
            begun.append(job)
        result = step(job, number)
        if len(begun) == 2 and number == at:
            next(job.network.parameters()).data.fill_(float("nan"))
        return result

    settings = (*COLLECT, "collect.repeats=1", "collect.epochs=4")
    collect("nasbench101", small, count=3, settings=settings, out=tmp_path / "good")
    monkeypatch.setattr(TrainJob, "step", spoilt)
    with pytest.raises(InterruptedRun):
        collect("nasbench101", small, count=3, settings=settings, out=tmp_path / "bad", observer=_Stopping(13))
    result = collect(out=tmp_path / "bad", resume=True)
    good, bad = rows(tmp_path / "good"), rows(tmp_path / "bad")
    assert (bad[0], bad[2]) == (good[0], good[2])
    assert bad[1] == {**good[1], "score": "0.25", "epochs": str(at // 2)} and result.record["result"]["diverged"] == 1


def test_a_huge_learning_rate(small: str, tmp_path: Path) -> None:
    settings = (*COLLECT, "collect.lr=1e38", "collect.clip=0")
    collect("nasbench101", small, count=2, settings=settings, out=tmp_path / "out")
    assert scores(tmp_path / "out") == [0.25, 0.25] and {row["epochs"] for row in rows(tmp_path / "out")} <= {"0", "1"}


# Wrong inputs


class _Unsampled(Dense):
    def sample(self, choices: Mapping[str, Choice], rng: torch.Generator) -> Architecture:
        raise SettingError("A space to sample must be small.")


def test_refused_before_anything_is_written(small: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases: list[tuple[type[NasengineError], str, object, object, dict[str, object]]] = [
        (SettingError, "collect.count must be at least 1, but got 0", "nasbench101", small, {"count": 0}),
        (SettingError, "collect.count must be a whole number", "nasbench101", small, {"count": "two"}),
        (SettingError, "A space to sample must be small", _Unsampled(), regression_dataset(), {"count": 2}),
        (SettingError, "came to 9; ask for fewer by --count", Dense(), regression_dataset(), {"count": 10}),
        (ArchitectureError, "is for images", "nasbench101", regression_dataset(), {"settings": COLLECT}),
        (DataError, "A batch of 99 needs", "nasbench101", small, {"settings": (*SPACE, "collect.batch_size=99")}),
        (NasengineError, "Unknown setting 'collect.epoch'", "nasbench101", small, {"settings": ["collect.epoch=1"]}),
        (NasengineError, "Unknown search space", "nasbench", small, {}),
    ]
    for kind, message, space, task, more in cases:
        with pytest.raises(kind, match=message):
            collect(space, task, out=out, **more)  # type: ignore[arg-type]
        assert not out.exists()


def test_refused_by_what_is_there(whole: Path, small: str, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    cases: list[tuple[str, dict[str, object]]] = [
        ("must be new or empty, but holds a run that is finished", {}),
        ("is finished: nothing is left .*; ask for more by --count alone", {"resume": True}),
        ("is finished", {"resume": True, "count": 4, "settings": ["space.channels=3"]}),
        ("at least the labels that it has begun, 3 in .* but --count is 2", {"resume": True, "count": 2}),
    ]
    for message, more in cases:
        given = {} if more.get("resume") else {"space": "nasbench101", "task": small, "settings": COLLECT}
        with pytest.raises(RunError, match=message):
            collect(out=out, **given, **more)  # type: ignore[arg-type]
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    with pytest.raises(RunError, match=r"needs the run of a search, but .* 'nasengine collect'"):
        nasengine.train(out)
    with pytest.raises(RunError, match=r"which finds no architecture; open its labels.csv"):
        nasengine.show(out)


def test_other_settings_are_refused_when_it_goes_on(small: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InterruptedRun):
        collect("nasbench101", small, count=2, settings=COLLECT, out=out, observer=_Stopping(9))
    for setting, told in (
        ("collect.epochs=3", "collect.epochs is 2 in .* and 3 is asked for; drop"),
        ("space.channels=3", "space.channels is 6 in"),
        ("data.train_portion=0.25", "data.train_portion is 0.5 in"),
    ):
        with pytest.raises(RunError, match=told):
            collect(count=3, settings=[setting], out=out, resume=True)


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("architecture,score\nx=1,0.5\n")
    for path, why in ((tmp_path, "it is not such a table"), (tmp_path / "none.csv", "No such file or directory")):
        with pytest.raises(DataError, match=rf"^Labels must be in a readable labels.csv .* is none: {why}\.$"):
            read_labels(path)
