from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nasengine.algorithms.darts import DARTS as DartsSearch
from nasengine.config import (
    SearchSettings,
    TrainSettings,
    plain_plugin,
    read_config,
    resolve_algorithm,
    resolve_device,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.errors import DeviceError, RunError, SettingError, UnknownNameError
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.task import DataSettings, Task, load_task
from search_spaces.darts import DARTS
from tests.nasengine.runs import contents, record


def test_assignments_by_group() -> None:
    texts = ["algo.weights.lr=0.1", " space.x = a=b ", "algo.beta=1", "algo.beta=2"]
    assert split_assignments(texts, ("algo", "space", "data")) == {
        "algo": {"weights.lr": "0.1", "beta": "2"},
        "space": {"x": "a=b"},
        "data": {},
    }


@pytest.mark.parametrize("text", ["", "x", "algo.beta", "beta=1", "=1"])
def test_texts_that_are_no_assignments(text: str) -> None:
    with pytest.raises(SettingError, match=r"A setting must be group.name=value such as algo.x=1, but got"):
        split_assignments([text], ("algo",))


@pytest.mark.parametrize("given", ["darts", DARTS, DARTS()])
def test_a_name_a_class_and_an_instance_are_one(given: Any) -> None:
    assert resolve_space(given, {}, {"layers": "5"}) == DARTS(layers=5)


def test_stored_settings_are_for_the_same_plugin() -> None:
    stored = {"name": "darts", "order": "second", "weights": {"lr": 0.5}}
    assert resolve_algorithm(None, stored, {}).weights.lr == 0.5  # type: ignore[attr-defined]
    assert resolve_algorithm("darts", stored, {"weights.momentum": "0.1"}) == resolve_algorithm(
        DartsSearch(order="second"), {}, {"weights.lr": "0.5", "weights.momentum": "0.1"}
    )
    assert resolve_algorithm("rarts", stored, {}) == ALGORITHMS["rarts"]()
    assert resolve_algorithm(DartsSearch(), stored, {}) == DartsSearch()


def test_plain_plugin_comes_back() -> None:
    space = DARTS(layers=5, stem="cifar")
    assert resolve_space(None, plain_plugin(SPACES, space), {}) == space


def test_task_by_name_and_as_it_is() -> None:
    task, plain = resolve_task(None, {}, {"train_portion": "0.75"})
    assert task.name == "digits" and task.settings == DataSettings(train_portion=0.75)
    assert plain["name"] == "digits" and plain["train_portion"] == 0.75
    given = load_task("digits", DataSettings(crop=0))
    same, plain = resolve_task(given, {"name": "cifar10:nowhere"}, {})
    assert same is given and isinstance(same, Task) and plain["name"] == "digits" and plain["crop"] == 0


def test_stored_values_are_checked_like_given_ones() -> None:
    with pytest.raises(SettingError, match=r"space.layers must be a whole number, but got 'x'"):
        resolve_space(None, {"name": "darts", "layers": "x"}, {})
    with pytest.raises(UnknownNameError, match=r"Unknown setting 'space.layer': did you mean 'space.layers'"):
        resolve_space(None, {"name": "darts", "layer": 3}, {})
    with pytest.raises(UnknownNameError, match="Unknown search space 'dartz': did you mean 'darts'"):
        resolve_space(None, {"name": "dartz"}, {})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (lambda: SearchSettings(epochs=0), "search.epochs must be at least 1, but got 0"),
        (lambda: SearchSettings(batch_size=-1), "search.batch_size must be at least 1, but got -1"),
        (lambda: SearchSettings(checkpoint_seconds=float("nan")), "search.checkpoint_seconds must be at least 0"),
        (lambda: TrainSettings(momentum=1.0), "train.momentum must be at least 0 and at most 0.999, but got 1.0"),
        (lambda: TrainSettings(lr=0.0), "train.lr must be more than 0, but got 0.0"),
    ],
)
def test_ranges(settings: Any, told: str) -> None:
    with pytest.raises(SettingError, match=told):
        settings()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "bogus", "", "meta", "cpu:x", "xla"])
def test_devices_that_are_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=rf"one of this machine, cpu or auto, but got '{name}'\.$"):
        resolve_device(name)


def test_read_config_of_a_directory_and_of_a_file(ended: Path) -> None:
    before = contents(ended)
    assert read_config(ended, "search") == read_config(ended / "run.json", "search") == record(ended)["config"]
    assert read_config(ended / "final", "train")["train"]["epochs"] == 2
    with pytest.raises(RunError, match="must be of a run of 'nasengine train', but is of one of 'nasengine search'"):
        read_config(ended, "train")
    assert contents(ended) == before
