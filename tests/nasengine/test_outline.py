from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.cost import memory
from nasengine.elastic import Size
from nasengine.layers import ElasticLinear
from nasengine.outline import Outline, Sketches
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import MixedOp
from nasengine.task import Shapes
from nasengine.testing import SizedSpace
from search_spaces.darts import DARTS
from search_spaces.nasbench101 import NASBench101
from search_spaces.nasbench201 import NASBench201
from search_spaces.ofa import OFA
from search_spaces.transformer import Transformer

VECTORS = Shapes((4,), 3)


@pytest.mark.parametrize(
    ("space", "shapes"),
    [
        (DARTS(nodes=2), Shapes((3, 16, 16), 10)),
        (NASBench201(), Shapes((3, 8, 8), 10)),
        (OFA(), Shapes((1, 8, 8), 10)),
        (Transformer(), Shapes((3, 16, 16), 10)),
        (SizedSpace(), Shapes((2, 5), 3)),
        (NASBench101(channels=8, cells=1), Shapes((3, 8, 8), 10)),
    ],
    ids=["darts", "nasbench201", "ofa", "transformer", "sized", "nasbench101"],
)
def test_memory_of_a_walk_is_that_of_the_network_that_is_built(space: Space, shapes: Shapes) -> None:
    final, choices, rng = space.final(), space.choices(shapes), generator(0)
    sketches = Sketches(final, shapes)
    drawn = [space.smallest(choices), space.largest(choices), *(space.sample(choices, rng) for _ in range(2))]
    for architecture in drawn:
        built = memory(lambda a=architecture: final.build(a, shapes), shapes)  # type: ignore[misc]
        assert sketches(architecture).memory == built


def test_a_walk_runs_what_the_network_that_is_built_runs() -> None:
    """Also where much is known of the calls of other architectures."""
    space, shapes = DARTS(nodes=2).final(), Shapes((3, 16, 16), 10)
    sketches, choices, rng = Sketches(space, shapes), space.choices(), generator(1)
    for architecture in (space.sample(choices, rng) for _ in range(3)):
        with torch.device("meta"):
            network = space.build(architecture, shapes)
        plain = Outline(space, shapes, network=network)(Architecture({}))
        assert sketches(architecture).pieces == plain.pieces


class Scale(nn.Module):
    """Its factor decides what it gives, and is in no representation."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.factor, dim=1)


class Odd(nn.Module):
    """Settings that look alike, weights in two places, an output that is an input, a list, and one weight as output."""

    def __init__(self) -> None:
        super().__init__()
        width = Size("width", (2, 5))
        self.twice, self.thrice = Scale(2), Scale(3)
        self.first, self.same = ElasticLinear(4, width), ElasticLinear(width, width)
        self.again = self.same
        self.last = ElasticLinear(width, 3)
        self.mixed = MixedOp("end", {"relu": nn.ReLU(inplace=True), "same": nn.Identity()})
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = self.thrice(x)[:, :4] + self.twice(x)[:, 2:6]
        y, scale = self.pair([x, x])
        y = self.again(self.same(self.first(y * scale)))
        logits: Tensor = self.mixed(self.last(y))
        return logits


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        return parts[0] + parts[1], self.scale


@dataclass(frozen=True, kw_only=True)
class OddSpace(Space):
    def network(self, shapes: Shapes) -> nn.Module:
        return Odd()


def test_odd_networks_are_counted_as_built() -> None:
    space, sketches = OddSpace(), Sketches(OddSpace(), VECTORS)
    for text in ("width=2 end=relu", "width=5 end=same", "width=2 end=same", "width=5 end=relu"):
        architecture = Architecture.parse(text)
        built = memory(lambda a=architecture: space.build(a, VECTORS), VECTORS)  # type: ignore[misc]
        assert sketches(architecture).memory == built
        with torch.device("meta"):
            network = space.build(architecture, VECTORS)
        assert sketches(architecture).pieces == Outline(space, VECTORS, network=network)(Architecture({})).pieces


def test_pieces_of_a_network_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.layers(x)], dim=1).view(-1, 2)

    with torch.device("meta"):
        outline = Outline(OddSpace(), VECTORS, batch_size=3, network=Net())
    found = outline(Architecture({})).pieces
    assert sorted((outline.pieces[text].name, count) for text, count in found.items()) == [
        ("Linear(in_features=4, out_features=4, bias=True)", 2),
        ("ReLU()", 2),
        ("aten.cat.default", 1),
    ]
    assert all("(3, 4)" in text for text in found)
