"""No step of a search or a training waits for the device: a GPU gets its work far ahead of what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nasengine.algorithm import Algorithm
from nasengine.budget import CostModel, Limits
from nasengine.measure import ACCURACY
from nasengine.microbatches import micro_batches
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.search_plan import plan_search
from nasengine.searching import SearchJob
from nasengine.seeding import generator
from nasengine.settings import from_plain
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes
from nasengine.train_plan import plan_training
from nasengine.training import TrainJob
from tests.nasengine.runs import GENOTYPE, SEARCH, TRAIN
from tests.nasengine.waits import META, waits

SHAPES = Shapes((3, 8, 8), 4)
SPACES_SMALL: Mapping[str, Mapping[str, Any]] = {
    "darts": {"channels": 2, "layers": 3, "nodes": 1},
    "nasbench201": {"channels": 2, "cells": 1},
    "ofa": {"units": 1, "depths": (1, 2), "width": 0.25, "resolutions": (4, 8)},
    "transformer": {"embedding": 8, "depth": 2, "heads": 2, "mlp": 8, "options": 2},
}
SEARCHED = [name for name in SPACES.names() if SPACES[name].searchable]
STEPS = 2
QUICK: Mapping[str, Mapping[str, Any]] = {"deps": {"warmup": 0.5, "subnets": 2}}
VARIANTS: list[tuple[str, str, Mapping[str, Any]]] = [
    ("transformer", "darts", {"order": "second"}),
    ("transformer", "darts", {"order": "exact", "widths": "gates"}),
    ("transformer", "darts", {"weights": {"optimizer": "adamw"}}),
    ("transformer", "rarts", {"sweep": "stale", "alphas": {"optimizer": "sgd"}}),
    ("transformer", "deps", {"warmup": 0.0, "teacher": "frozen", "sampling": "random"}),
    ("ofa", "slimming", {"on": "norms"}),
    ("transformer", "slimming", {"gates": {"sparsity": {"by": "palm"}}}),
]


def made(space: str) -> Supernet:
    return SPACES[space](**SPACES_SMALL.get(space, {})).supernet(SHAPES, F.cross_entropy)


def batch() -> Batch:
    return Batch(torch.empty(8, *SHAPES.input, device=META), torch.empty(8, dtype=torch.int64, device=META))


def assert_no_waits(space: str, algorithm: str, settings: Mapping[str, Any], limits: Limits | None = None) -> None:
    method: Algorithm[Any] = from_plain(ALGORITHMS[algorithm], settings, "algo")
    net = made(space).to(META)
    if limits:
        costs = CostModel(net.space, SHAPES)
        net.price = lambda mixture: limits.excess(costs.expected(mixture))
        net.price(net.one_hot(net.space.smallest(net.choices)))  # what it needs of numbers is copied once
    state = method.init(net, generator(1), STEPS)
    for _ in range(STEPS):
        with waits() as found:
            info = method.step(state, batch(), batch())
            ACCURACY(info.train_outputs, batch().targets)
        assert not found, "\n".join(dict.fromkeys(found))


@pytest.mark.parametrize("algorithm", ALGORITHMS.names())
@pytest.mark.parametrize("space", SEARCHED)
def test_a_step_waits_for_nothing(space: str, algorithm: str) -> None:
    assert_no_waits(space, algorithm, QUICK.get(algorithm, {}))


@pytest.mark.parametrize(("space", "algorithm", "settings"), VARIANTS)
def test_a_step_in_another_form(space: str, algorithm: str, settings: Mapping[str, Any]) -> None:
    assert_no_waits(space, algorithm, settings)


def test_a_step_in_micro_batches() -> None:
    with micro_batches(2):
        assert_no_waits("transformer", "darts", {})


def test_a_step_that_heeds_limits() -> None:
    assert_no_waits("transformer", "darts", {}, Limits(parameters=1000, multiply_adds=1000))


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are on the meta device."""
    for module in ("nasengine.searching", "nasengine.training"):
        monkeypatch.setattr(f"{module}.resolve_device", lambda name: META)
    monkeypatch.setattr("nasengine.searching.check_network", lambda *arguments: None)  # it reads what it tries


AUGMENTED = ("data.crop=1", "data.flip=true", "data.cutout=2")


@pytest.mark.usefixtures("on_meta")
def test_batches_and_measures_of_a_search(small: str) -> None:
    plan = plan_search(task=small, settings=[*SEARCH, *AUGMENTED])
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings)
    with waits() as found:
        job.step(0)
    assert not found, found


@pytest.mark.usefixtures("on_meta")
def test_a_step_of_a_training(small: str) -> None:
    settings = [*TRAIN, *AUGMENTED, "space.nodes=1"]
    plan = plan_training(genotype=GENOTYPE, task=small, settings=settings)
    job = TrainJob(plan.space, plan.architecture, plan.task, plan.settings)
    with waits() as found:
        job.step(job.steps_per_epoch)  # of the second epoch: paths are dropped
    assert not found, found


def test_what_waits_is_found() -> None:
    x, host = torch.empty(3, device=META), torch.ones(3)
    waiting: list[Callable[[], object]] = [
        x.sum().item,
        x.tolist,
        lambda: x[x > 0],
        lambda: x[[0, 1]],
        lambda: x[torch.tensor([0])],
        lambda: bool(x[0] > 0),
        lambda: x.copy_(host),
        lambda: host.to(META),
        lambda: torch.tensor([1.0], device=META),
        lambda: x.new_tensor([1.0]),
    ]
    for wait in waiting:
        with waits() as found, suppress(RuntimeError, NotImplementedError):
            wait()
        assert len(found) == 1, wait
    with waits() as found:
        (host.sum().item(), x * host.sum(), torch.zeros((), device=META) + x, host.to(META, non_blocking=True))
        (x[1:], x[torch.zeros(2, dtype=torch.int64, device=META)], torch.where(x == 0, 1, x))
    assert not found
