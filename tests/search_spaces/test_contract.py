"""The laws of spaces, for every registered one: at the settings below, at its defaults if it is not among them."""

from __future__ import annotations

from typing import Any

import pytest

from nasengine.errors import NasengineError
from nasengine.registry import SPACES
from nasengine.task import Shapes
from nasengine.testing import check_space

SMALL: dict[str, dict[str, Any]] = {
    "darts": {"channels": 4, "layers": 3, "nodes": 2},
    "nasbench201": {"channels": 4, "cells": 1},
    "nasbench101": {"channels": 4, "stacks": 2, "cells": 1},
    "ofa": {"units": 2, "depths": (1, 2), "width": 0.25, "resolutions": (4, 8)},
    "transformer": {"embedding": 16, "depth": 2, "heads": 2, "mlp": 24},
}


@pytest.mark.parametrize("name", SPACES.names())
def test_laws(name: str) -> None:
    assert SPACES[name].name == name
    check_space(SPACES[name](**SMALL.get(name, {})), Shapes((3, 8, 8), 10))


@pytest.mark.parametrize("name", SPACES.names())
def test_laws_on_images_that_are_grey_and_odd(name: str) -> None:
    space, shapes = SPACES[name](**SMALL.get(name, {})), Shapes((1, 9, 7), 2)
    try:
        space.choices(shapes)
    except NasengineError as refusal:
        pytest.skip(str(refusal))
    check_space(space, shapes)


def test_the_table_names_spaces_that_there_are() -> None:
    assert set(SMALL) <= set(SPACES.names())
