"""The laws of spaces, for every registered one at a small size."""

from __future__ import annotations

import dataclasses

import pytest

from nasengine.registry import SPACES
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.testing import check_space

SMALL = {"channels": 4, "layers": 3}


def small(name: str) -> Space:
    kind: type[Space] = SPACES[name]
    names = {field.name for field in dataclasses.fields(kind)}
    return dataclasses.replace(kind(), **{key: value for key, value in SMALL.items() if key in names})


@pytest.mark.parametrize("name", SPACES.names())
@pytest.mark.parametrize("shapes", [Shapes((3, 8, 8), 10), Shapes((1, 9, 7), 2)], ids=["colour", "grey and odd"])
def test_laws(name: str, shapes: Shapes) -> None:
    assert SPACES[name].name == name
    check_space(small(name), shapes)
