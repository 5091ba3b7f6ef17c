"""Which architectures are labelled: different ones, the same for every count."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nasengine.architecture import Architecture
from nasengine.encoding import Graphs, encode_choices
from nasengine.errors import SettingError
from nasengine.labelling import draw
from nasengine.registry import SPACES
from nasengine.seeding import generator
from nasengine.task import Shapes
from search_spaces.nasbench101 import NASBench101
from tests.nasengine.dense import Dense
from tests.search_spaces.test_contract import SMALL


def test_more_architectures_begin_with_the_same() -> None:
    space, shapes = NASBench101(), Shapes((3, 8, 8), 10)
    many = draw(space, shapes, 150, generator(3))
    assert len({space.cell(architecture).module_hash for architecture in many}) == 150
    assert draw(space, shapes, 7, generator(3)) == many[:7]


@pytest.mark.parametrize("name", SPACES.names())
def test_different_ones_are_kept_apart(name: str) -> None:
    space, shapes = SPACES[name](**SMALL.get(name, {})), Shapes((3, 8, 8), 10)
    rng, choices = generator(4), space.choices(shapes)
    seen = dict.fromkeys(space.sample(choices, rng) for _ in range(100))
    found = draw(space, shapes, 20, generator(4))
    expected = list(seen)[:20]
    assert found == expected or name == "nasbench201"  # of these some are the same cell
    assert len(set(found)) == 20


class _Blind(Dense):
    """A space in which the last choice has no effect on the network, and on its arrays neither."""

    def encode(self, architectures: Sequence[Architecture], shapes: Shapes) -> Graphs:
        return super().encode([a.replace("layer/1", "skip") for a in architectures], shapes)


def test_equal_arrays_are_one_architecture() -> None:
    shapes = Shapes((4,), 2)
    assert len(draw(Dense(), shapes, 9, generator(0))) == 9
    found = draw(_Blind(), shapes, 3, generator(0))
    assert {a["layer/0"] for a in found} == {"linear", "relu", "skip"}
    with pytest.raises(SettingError, match=r"^collect.count must .* 4 are asked for and .* came to 3; ask"):
        draw(_Blind(), shapes, 4, generator(0))


class _Gapped(Dense):
    """A space whose first choice is always idle."""

    def encode(self, architectures: Sequence[Architecture], shapes: Shapes) -> Graphs:
        return encode_choices(self.choices(shapes), [{"layer/0"}] * len(architectures), architectures)


def test_arrays_may_have_gaps() -> None:
    found = draw(_Gapped(), Shapes((4,), 2), 3, generator(0))
    assert {a["layer/1"] for a in found} == {"linear", "relu", "skip"}
