"""Searches and trainings on tables, texts and numbers, with losses, measures and data of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nasengine
from nasengine.cost import multiply_adds
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.evaluation import evaluating
from nasengine.loop import Observer
from nasengine.measure import Measure
from nasengine.supernet import MixedOp
from nasengine.task import Shapes, Task, load_task
from nasengine.train_plan import plan_training
from tests.nasengine.dense import Dense
from tests.nasengine.runs import assert_same_run, history, record
from tests.nasengine.tasks import regression_dataset, token_dataset

SEARCH = ("search.epochs=2", "search.batch_size=8", "search.device=cpu")
TRAIN = ("train.epochs=2", "train.batch_size=8", "train.device=cpu")

OWN = """
from nasengine import DataSettings, Task, load_task

def make():
    table = load_task("sklearn:iris").dataset
    return Task(dataset=table, settings=DataSettings(train_portion=0.6))
"""


class _Stop(Observer):
    """Leaves a run after its first epoch."""

    def saved(self, step: int) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("algorithm", "name", "measure"),
    [("darts", "wine", "accuracy"), ("darts", "diabetes", "negative_mse"), ("rarts", "diabetes", "negative_mse")],
)
def test_tables_of_scikit_learn(tmp_path: Path, algorithm: str, name: str, measure: str) -> None:
    found = nasengine.search(Dense(), algorithm, f"sklearn:{name}", settings=SEARCH, out=tmp_path / "run")
    rows, result = history(found.path), found.record["result"]
    assert list(rows[0])[:7] == [
        *("epoch", "train_loss", "valid_loss", f"train_{measure}", f"valid_{measure}", f"supernet_{measure}"),
        f"derived_{measure}",
    ]
    assert float(rows[-1][f"derived_{measure}"]) == result[f"derived_{measure}"]
    trained = nasengine.train(found.path, settings=TRAIN)
    assert list(history(trained.path)[0]) == ["epoch", "train_loss", f"train_{measure}", "lr"]
    assert trained.test_score == trained.record["result"][f"test_{measure}"]


def test_same_seed_same_bits(tmp_path: Path) -> None:
    for name in ("one", "other"):
        nasengine.search(Dense(), "darts", "sklearn:diabetes", settings=SEARCH, out=tmp_path / name)
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_the_score_of_a_regression_is_recomputed_from_the_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trained = nasengine.train(
        architecture="layer/0=relu layer/1=skip", space=Dense(), task="sklearn:diabetes", settings=TRAIN, out=tmp_path
    )
    task = load_task("sklearn:diabetes")
    network = Dense().build(plan_training(config=trained.record["config"]).architecture, task.shapes)
    network.load_state_dict(load_file(tmp_path / "network.safetensors"))
    mean, std = task.normalisation
    with evaluating(network):
        errors = network((task.dataset.test_inputs - mean) / std) - task.dataset.test_targets
    assert trained.test_score == pytest.approx(-float(errors.square().mean()), rel=1e-5)
    rows = history(tmp_path)
    assert float(rows[-1]["train_negative_mse"]) == pytest.approx(-float(rows[-1]["train_loss"]), rel=1e-5)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_texts(tmp_path: Path) -> None:
    task = Task(dataset=token_dataset())
    found = nasengine.search(Dense(), "darts", task, settings=SEARCH, out=tmp_path / "run")
    trained = nasengine.train(found.path, task=task, settings=TRAIN)
    assert 0 <= trained.test_score <= 1
    layers = sum(option != "skip" for option in found.architecture.values())
    assert trained.record["result"]["parameters"] == 9 * 8 + layers * (8 * 8 + 8) + 8 * 2 + 2
    assert trained.record["result"]["multiply_adds"] == layers * 8 * 8 + 8 * 2


def test_a_limit_on_the_cost_of_a_network_for_tokens(tmp_path: Path) -> None:
    task, limit = Task(dataset=token_dataset()), 9 * 8 + 8 * 8 + 8 + 8 * 2 + 2
    settings = (*SEARCH, f"search.max_params={limit}")
    found = nasengine.search(Dense(), "darts", task, settings=settings, out=tmp_path / "run")
    assert list(found.architecture.values()).count("skip") >= 1


def test_cost_of_a_network_for_tokens() -> None:
    shapes = Shapes((6,), 2, vocabulary=9)
    build = lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 2))  # noqa: E731
    assert multiply_adds(build, shapes) == 48


def test_loss_and_measure_of_ones_own(tmp_path: Path) -> None:
    near = Measure("near", lambda outputs, targets: ((outputs - targets).abs() < 1).float().mean(dim=1).sum())
    task = Task(dataset=regression_dataset(), loss=F.l1_loss, measure=near)
    found = nasengine.search(Dense(), "darts", task, settings=SEARCH, out=tmp_path / "run")
    result = found.record["result"]
    assert 0 <= result["supernet_near"] <= 1 and "supernet_accuracy" not in result
    trained = nasengine.train(found.path, task=task, settings=TRAIN)
    assert trained.test_score == trained.record["result"]["test_near"]
    plain = Task(dataset=regression_dataset(), measure=near)
    other = nasengine.train(found.path, task=plain, settings=TRAIN, out=tmp_path / "other")
    assert history(other.path) != history(trained.path)


@pytest.mark.parametrize(
    "task",
    [Task(dataset=regression_dataset()), Task(dataset=token_dataset(), loss=F.multi_margin_loss)],
    ids=["regression", "own loss"],
)
def test_label_smoothing_needs_the_cross_entropy(task: Task, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        nasengine.train(
            architecture="layer/0=relu layer/1=skip",
            space=Dense(),
            task=task,
            settings=(*TRAIN, "train.label_smoothing=0.1"),
            out=tmp_path / "run",
        )
    assert str(caught.value) == (
        f"train.label_smoothing must be 0 unless the loss is the cross-entropy, which that of {task.name} is not, but "
        "got 0.1; leave it out."
    )
    assert not (tmp_path / "run").exists()


def test_a_network_with_the_wrong_number_of_outputs(tmp_path: Path) -> None:
    class One(Dense):
        def network(self, shapes: Shapes) -> nn.Module:
            layer = MixedOp("layer/0", {"linear": nn.Linear(3, 1), "other": nn.Linear(3, 1)})
            return nn.Sequential(nn.Identity(), layer)

    with pytest.raises(
        ArchitectureError, match=r"must have the shape \(batch, 2\), but for a batch of 2 it gave \(2, 1\)"
    ):
        nasengine.search(One(), "darts", Task(dataset=regression_dataset()), settings=SEARCH, out=tmp_path / "run")


def test_own_data_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    whole = nasengine.search(Dense(), "darts", "flowers.py:make", settings=SEARCH, out=tmp_path / "whole")
    config = whole.record["config"]
    assert config["data"]["name"] == f"{tmp_path}/flowers.py:make" and config["data"]["train_portion"] == 0.6
    with pytest.raises(ZeroDivisionError):
        nasengine.search(Dense(), "darts", "flowers.py:make", settings=SEARCH, out=tmp_path / "run", observer=_Stop())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    nasengine.search(out=tmp_path / "run", resume=True)
    nasengine.search(config=config, out=tmp_path / "repeated")
    for name in ("run", "repeated"):
        assert_same_run(whole.path, tmp_path / name)
    trained = nasengine.train(whole.path, settings=TRAIN)
    assert trained.record["config"]["data"] == config["data"] and record(trained.path)["facts"]["task"] == "iris"


def test_own_data_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "flowers.py").write_text(OWN)
    with pytest.raises(ZeroDivisionError):
        nasengine.search(
            Dense(), "darts", f"{tmp_path}/flowers.py:make", settings=SEARCH, out=tmp_path / "run", observer=_Stop()
        )
    (tmp_path / "flowers.py").unlink()
    with pytest.raises(SettingError, match=r"A plug-in file must exist, but .*flowers.py does not\."):
        nasengine.search(out=tmp_path / "run", resume=True)


def test_too_few_numbers(tmp_path: Path) -> None:
    task = Task(dataset=regression_dataset(4))
    with pytest.raises(DataError, match=r"A batch of 8 needs at least as many training examples, .* lines has 2"):
        nasengine.search(Dense(), "darts", task, settings=SEARCH, out=tmp_path / "run")


def test_changes_to_a_task_that_is_given(tmp_path: Path) -> None:
    task = Task(dataset=regression_dataset())
    changed = nasengine.search(
        Dense(), "darts", task, settings=(*SEARCH, "data.train_size=20"), out=tmp_path / "changed"
    )
    assert changed.record["config"]["data"]["train_size"] == 20
    assert changed.record["facts"]["fingerprint"].startswith("20 + 10 of (3,)")
    assert len(task.dataset.train_targets) == 40 and torch.equal(task.split(0)[0], task.split(0)[0])


def test_data_in_memory(tmp_path: Path) -> None:
    data = regression_dataset()
    found = nasengine.search(Dense(), "darts", data, settings=SEARCH, out=tmp_path)
    assert found.record["config"]["data"]["name"] == "lines" and "derived_negative_mse" in found.record["result"]
    assert nasengine.train(found.path, task=data, settings=TRAIN).test_score < 0
    with pytest.raises(SettingError) as caught:
        nasengine.search(Dense(), "darts", data.train_inputs, out=tmp_path / "other")  # type: ignore[arg-type]
    assert str(caught.value) == "Data must be a text such as 'digits', a Dataset or a Task, but got Tensor."
