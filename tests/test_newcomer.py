"""What a new user writes from README.md alone keeps the laws and runs under every algorithm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import nasengine
from nasengine.registry import ALGORITHMS
from nasengine.task import DataSettings, load_task
from nasengine.testing import check_space
from tests.newcomer_space import Mobile, Text

torch.set_num_threads(1)

SPACES = [(Mobile, "digits"), (Text, f"{Path(__file__).parent}/newcomer_space.py:brackets")]
IDS = ["mobile", "text"]
SEARCH = ("search.epochs=1", "search.batch_size=32", "search.eval_size=64", "search.device=cpu")
FEW = {"deps": ("algo.evolution.population=2", "algo.evolution.generations=0")}


@pytest.mark.parametrize(("space", "data"), SPACES, ids=IDS)
def test_the_laws_hold(space: type[nn.Module], data: str) -> None:
    check_space(space, load_task(data).shapes)


@pytest.mark.parametrize("algorithm", ALGORITHMS.names())
@pytest.mark.parametrize(("space", "data"), SPACES, ids=IDS)
def test_it_is_searched_and_trained(space: type[nn.Module], data: str, algorithm: str, tmp_path: Path) -> None:
    task = load_task(data, DataSettings(train_size=150))
    settings = [*SEARCH, *FEW.get(algorithm, ())]
    found = nasengine.search(space, algorithm, task, settings=settings, out=tmp_path)
    train = ["train.epochs=1", "train.batch_size=32", "train.device=cpu"]
    trained = nasengine.train(found.path, task=task, settings=train)
    for cost in ("parameters", "multiply_adds"):
        assert trained.record["result"][cost] == found.record["result"][cost] > 0


def test_a_limit_holds(tmp_path: Path) -> None:
    task = load_task(SPACES[1][1])
    settings = [*SEARCH, "search.max_params=900"]
    found = nasengine.search(Text, "rarts", task, settings=settings, out=tmp_path)
    assert found.record["result"]["parameters"] <= 900 and found.architecture["width"] == "8"
