from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithm import Algorithm
from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.deps import DepS
from nasengine.algorithms.random_search import RandomSearch
from nasengine.algorithms.rarts import RARTS
from nasengine.algorithms.slimming import Slimming
from nasengine.cost import step_bytes
from nasengine.errors import DeviceMemoryError, SettingError
from nasengine.loop import seeded
from nasengine.microbatches import Division, exhausted, is_out_of_memory, micro_batches, outputs_of
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes
from search_spaces.transformer import Transformer
from tests.nasengine.calls import close, numbers

CPU = torch.device("cpu")
SPLITS = pytest.mark.parametrize("count", [2, 3, 8])  # of 8 examples: 4 + 4, 3 + 3 + 2, single ones


def batches(count: int) -> list[Batch]:
    rng = generator(1)
    shape = (count, 1, 8, 8)
    return [
        Batch(torch.randn(shape, generator=rng, dtype=torch.float64), torch.randint(4, (count,), generator=rng))
        for _ in range(4)
    ]


def stepped(algorithm: Algorithm[Any], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """What two steps log, and the weights after them."""
    with seeded(0, 0):
        supernet = Transformer(depth_options=(1, 2)).supernet(Shapes((1, 8, 8), 4), F.cross_entropy).double()
    state = algorithm.init(supernet, generator(3), 2)
    logged: list[Tensor] = []
    data = batches(8)
    with micro_batches(count):
        for step in range(2):
            logged += [x for x in algorithm.step(state, data[2 * step], data[2 * step + 1]) if x is not None]
    return logged, list(algorithm.supernet(state).parameters())


@SPLITS
@pytest.mark.parametrize(
    "algorithm",
    [
        *(DARTS(order="first"), DARTS(order="second"), DARTS(order="exact"), DARTS(widths="gates")),
        *(RARTS(), RARTS(sweep="stale"), Slimming(), RandomSearch(), DepS(warmup=0.5)),
    ],
    ids=repr,
)
def test_without_batch_norms_a_step_is_the_undivided_one(algorithm: Algorithm[Any], count: int) -> None:
    for divided, whole in zip(stepped(algorithm, count), stepped(algorithm, 1), strict=True):
        for one, other in zip(divided, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
