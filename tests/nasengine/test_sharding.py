"""Two processes on the halves of a batch compute what one does on all of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.config import SearchSettings
from nasengine.parallel import ALONE, Ranks
from nasengine.searching import SearchJob
from nasengine.seeding import generator
from nasengine.sharding import is_sharded, over_shards, shard, sharded, to_shards
from nasengine.shrinking import stage_at
from tests.nasengine.elastic_spaces import hidden
from tests.nasengine.processes import ALGORITHMS, CELLS, LAYERS, NORMS, SPREAD

SEARCHES = [
    *(f"{name} on sizes" for name in ALGORITHMS),
    *(f"{name} on layers" for name in LAYERS),
    *(f"{name} on cells" for name in CELLS),
    "rarts in bfloat16",
]


@pytest.fixture(scope="module")
def both(by_ranks: Path) -> tuple[Any, list[Any]]:
    """What one process computed, and what each of two did."""
    codes, said = json.loads((by_ranks / "codes.json").read_text())
    assert codes == [0, -signal.SIGKILL], said
    ranks = [torch.load(by_ranks / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    return torch.load(by_ranks / "alone.pt", weights_only=True), ranks


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from leaves(part, f"{where}.{place}")
    elif isinstance(value, (int, float)):
        yield where, torch.tensor(value, dtype=torch.float64)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    theirs = dict(leaves(expected))
    ours = dict(leaves(actual))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", SEARCHES)
def test_search_of_two_is_that_of_one(name: str, both: tuple[Any, list[Any]]) -> None:
    alone, ranks = both
    for found in ranks:
        assert_close(found[name], alone[name], 1e-5 if "cells" in name else 1e-2 if "bfloat16" in name else 1e-9)


@pytest.mark.parametrize("name", SEARCHES)
def test_all_processes_have_the_same_bits(name: str, both: tuple[Any, list[Any]]) -> None:
    _, (first, second) = both
    for (_, one), (_, other) in zip(leaves(first[name]["state"]), leaves(second[name]["state"]), strict=True):
        assert torch.equal(one, other)


def test_searches_move(both: tuple[Any, list[Any]]) -> None:
    for name in SEARCHES:
        losses = [float(step[0]) for step in both[0][name]["losses"]]
        assert len(set(losses)) == len(losses), name


def test_gradients_are_means_and_what_nobody_uses_has_none(both: tuple[Any, list[Any]]) -> None:
    alone, ranks = both
    for found in ranks:
        assert_close(found["gradients"][:3], alone["gradients"][:3], 1e-12)
        assert found["gradients"][3] is None and alone["gradients"][3] is None
        assert_close(found["second gradients"], alone["second gradients"], 1e-12)


@pytest.mark.parametrize("name", [*NORMS, "plain"])
def test_batch_norm_is_that_of_the_whole_batch(name: str, both: tuple[Any, list[Any]]) -> None:
    alone, ranks = both
    for place in range(2):  # outputs and gradients of the inputs belong to a shard
        parts = torch.cat([found[name][place] for found in ranks])
        torch.testing.assert_close(parts, alone[name][place], rtol=1e-10, atol=1e-10)
    for rest in zip(ranks[0][name][2:], ranks[1][name][2:], alone[name][2:], strict=True):
        torch.testing.assert_close(rest[0], rest[1], rtol=0, atol=0)


def test_one_process_computes_as_ever() -> None:
    weight = torch.ones(2, requires_grad=True)
    with sharded(ALONE):
        assert not is_sharded() and shard() == 0
        assert to_shards([weight])[0] is weight and over_shards(weight) is weight


def test_batch_norm_of_shards_has_one_memory(both: tuple[Any, list[Any]]) -> None:
    _, ranks = both
    whole = 3 + torch.randn(8, 3, 5, generator=generator(7), dtype=torch.float64)
    norms = [nn.BatchNorm1d(3).double() for _ in ranks]
    for found, norm, x in zip(ranks, norms, whole.chunk(2), strict=True):
        torch.testing.assert_close(found["of shards"][:2], [norm(x).detach(), norm(2 * x).detach()])
        torch.testing.assert_close(found["of shards"][2], F.batch_norm(x, None, None, training=True))
    for place, statistics in enumerate(zip(*(norm.buffers() for norm in norms), strict=True), start=3):
        mean = torch.stack(statistics).double().mean(0)
        for found in ranks:
            torch.testing.assert_close(found["of shards"][place].double(), mean)


def test_spread_subnets_learn_from_a_shard_each(both: tuple[Any, list[Any]]) -> None:
    """The gradient is that of the full network on the batch, and the mean over the shards of those of its subnets."""
    alone, ranks = both
    model = hidden()
    supernet, (x, targets) = model.supernet, model.train
    key = int(torch.randint(2**31, (), generator=generator(0)))
    stage = stage_at(supernet, "delayed", 0.0, SPREAD.subnets)
    outputs = supernet(x, supernet.full())
    loss = supernet.loss(outputs, targets)
    drawn = []
    for place, (part, soft) in enumerate(zip(x.chunk(2), outputs.detach().chunk(2), strict=True)):
        rng = generator(key, place)
        subnets = [stage.smallest(supernet, rng), *(stage.random(supernet, rng) for _ in range(2))]
        drawn.append(tuple(map(str, subnets)))
        for subnet in subnets:
            loss = loss + F.cross_entropy(supernet(part, supernet.hard(subnet)), soft.softmax(1)) / 2
    assert drawn[0] != drawn[1]
    parameters = dict(supernet.named_parameters())
    slopes = torch.autograd.grad(loss, list(parameters.values()))
    for found in ranks:
        state = found["spread"]["full"]
        for (name, weight), slope in zip(parameters.items(), slopes, strict=True):
            torch.testing.assert_close(state[name], weight.detach() - 0.1 * slope)
        assert torch.equal(found["spread"]["generator"], alone["spread"]["generator"])


def test_noise_differs_between_processes_and_leaves_no_trace() -> None:
    def drawn(rank: int, step: int) -> float:
        job: Any = SimpleNamespace(ranks=Ranks(rank, 2), settings=SearchSettings())
        with SearchJob._sharded(job, step):
            return float(torch.rand(()))

    before = torch.get_rng_state()
    numbers = [drawn(0, 0), drawn(1, 0), drawn(0, 1), drawn(1, 1)]
    assert len(set(numbers)) == 4 and drawn(1, 1) == numbers[-1]
    assert torch.equal(torch.get_rng_state(), before)
