from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from nasengine.cost import activation_bytes, memory
from nasengine.live import LiveBytes, weight_bytes
from nasengine.seeding import generator
from nasengine.separable import Pair, by_formula, separable
from nasengine.task import Shapes
from nasengine.testing import SizedSpace
from search_spaces.darts import DARTS
from search_spaces.ofa import OFA


class Chain(nn.Module):
    """A chain whose memory can be counted by hand, with an auxiliary head that inference has no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(10, 100, bias=False)
        self.narrow = nn.Linear(100, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.auxiliary = nn.Linear(1000, 1000)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.wide(x))
        z: Tensor = self.norm(self.narrow(y.view(-1, 100)))
        return z


def test_memory_of_a_chain_counted_by_hand() -> None:
    weights = 4 * (10 * 100 + 100 * 4 + 4 * 4) + 8  # four vectors of the norm, and its int64 counter
    at_the_peak = 4 * (10 + 100 + 100)  # the input, the output of the first layer and that of the ReLU
    assert memory(Chain, Shapes((10,), 4)) == weights + at_the_peak


def test_what_is_dropped_is_not_held_and_views_add_nothing() -> None:
    with LiveBytes() as live:
        a = torch.zeros(100)
        view = a.view(10, 10)[2:]
        view.add_(1)
        assert (live.now, live.most) == (400, 400)
        b = a + 1
        assert live.now == 800
        del a
        assert live.now == 800  # a view holds the whole
        del view
        assert (live.now, live.most) == (400, 800)
        del b
    assert (live.now, live.most) == (0, 800)


def test_several_outputs_are_counted_each() -> None:
    with LiveBytes() as live:
        parts = torch.zeros(2, 8).max(dim=1)
        assert live.now == 2 * 4 + 2 * 8
    assert parts.values.shape == (2,)


@pytest.mark.parametrize(
    ("space", "shapes"),
    [
        (DARTS(channels=4, layers=3, nodes=2), Shapes((3, 8, 8), 5)),
        (OFA(), Shapes((1, 8, 8), 10)),
        (SizedSpace(), Shapes((2, 5), 3)),
    ],
    ids=["darts", "ofa", "sized"],
)
def test_memory_on_meta_is_that_of_real_tensors(space: DARTS | OFA | SizedSpace, shapes: Shapes) -> None:
    choices, rng = space.choices(shapes), generator(0)
    for architecture in (space.smallest(choices), space.largest(choices), space.sample(choices, rng)):
        network = space.build(architecture, shapes).eval()
        real = weight_bytes(network) + activation_bytes(network, shapes.zeros(1))
        assert memory(lambda a=architecture: space.build(a, shapes), shapes) == real  # type: ignore[misc]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_what_cuda_allocates() -> None:
    network = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024)).cuda().eval()
    inputs = torch.zeros(64, 1024, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        network(inputs)
    grown = torch.cuda.max_memory_allocated() - before
    assert activation_bytes(network, inputs) - 4 * 64 * 1024 == pytest.approx(grown, rel=0.1)


def test_compiled_loops_are_counted_as_they_run() -> None:
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(8, 1, 3, 3, requires_grad=True), torch.randn(8, 8, 1, 1, requires_grad=True)
    separable(x, None, Pair(*weights))  # makes their scratch memory, which stays
    found = []
    for block in (nullcontext, by_formula):
        with block(), LiveBytes() as live:
            separable(x, None, Pair(*weights)).output.sum()
        found.append(live.most)
    assert found[0] < found[1]
