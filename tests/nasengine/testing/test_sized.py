"""The elastic toy is a lawful space with every kind of choice."""

from __future__ import annotations

from nasengine.task import Shapes
from nasengine.testing import check_space
from nasengine.testing.sized import SizedSpace, sized


def test_the_elastic_toy_is_a_space() -> None:
    check_space(SizedSpace(), Shapes((2, 5), 3))


def test_its_choices() -> None:
    assert {label: choice.ordinal for label, choice in sized().supernet.choices.items()} == {
        "width": True,
        "depth": True,
        "block1/hidden": True,
        "block1/kernel": True,
        "block2/hidden": True,
        "block2/kernel": True,
        "last": False,
    }
