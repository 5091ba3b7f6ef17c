"""What a space has by default for predictors: all of its architectures, and tables of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import pytest
from torch import nn

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.registry import SPACES
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.testing import SmoothSpace
from search_spaces.darts import DARTS
from search_spaces.nasbench201 import NASBench201

SHAPES = Shapes((4,), 3)
CIFAR = Shapes((3, 32, 32), 10)


def test_everything_is_each_architecture_once() -> None:
    space = SmoothSpace()
    found = space.everything(SHAPES)
    assert len(found) == len(set(found)) == 9
    assert all(isinstance(architecture, Architecture) for architecture in found)
    assert str(found[0]) == "layer/0=dense layer/1=dense" and str(found[1]) == "layer/0=dense layer/1=gate"
    assert len(NASBench201().everything(CIFAR)) == 15625


def test_everything_has_one_text_a_network() -> None:
    space = SPACES["examples/images.py:SmallCNN"]()
    choices = space.choices(CIFAR)
    found = space.everything(CIFAR)
    for architecture in found:
        space.check(choices, architecture)
    kernels = 3 + 3 * 3 + 3 * 3 * 3  # of one, two or three layers
    assert len(found) == len(set(found)) == 3 * 2 * kernels
    assert len(space.encode(found, CIFAR).unique()[0]) == len(found)


def test_too_much_for_everything() -> None:
    with pytest.raises(SettingError) as caught:
        DARTS().everything(CIFAR)
    assert str(caught.value).startswith("A space must have at most 200,000 combinations of options to be enumerated,")
    assert str(caught.value).endswith("; name candidates or a number of random ones.")


@dataclass(frozen=True, kw_only=True)
class Ruled(SmoothSpace):
    """Both layers must differ."""

    name: ClassVar[str] = ""

    def check(self, choices: object, architecture: Architecture) -> None:
        if len(set(architecture.values())) < 2:
            raise ArchitectureError("Layers must differ.")

    def network(self, shapes: Shapes) -> nn.Module:
        return super().network(shapes)


def test_everything_keeps_the_rules_of_a_space() -> None:
    assert len(Ruled().everything(SHAPES)) == 6


@pytest.mark.parametrize(("space", "shapes"), [(SmoothSpace(), SHAPES), (NASBench201(), CIFAR)], ids=["own", "text"])
def test_tables_read_back(space: Space, shapes: Shapes) -> None:
    found = space.everything(shapes)[:20]
    table = space.to_table(found, shapes)
    assert list(table) == ["architecture"] and table["architecture"].tolist() == [space.write(a) for a in found]
    assert list(space.from_table(table)) == list(found)
    assert list(space.from_table(table.iloc[[3, 1]])) == [found[3], found[1]]
    assert list(space.from_table(space.to_table([], shapes))) == []


def test_tables_that_cannot_be_read() -> None:
    space = NASBench201()
    with pytest.raises(DataError, match="must have the column 'architecture', but has text, score"):
        space.from_table(pd.DataFrame({"text": [], "score": []}))
    table = space.to_table(space.everything(CIFAR)[:2], CIFAR)
    table.loc[1, "architecture"] = "none"
    with pytest.raises(DataError, match=r"Row 2 of a table must have an architecture: An architecture must have the"):
        space.from_table(table)
    with pytest.raises(DataError, match="Row 1 of a table must have an architecture: "):
        space.from_table(pd.DataFrame({"architecture": [float("nan")]}))


def test_what_an_architecture_of_a_space_must_name() -> None:
    space = SmoothSpace()
    choices = space.choices(SHAPES)
    good = {"layer/0": "dense", "layer/1": "gate"}
    space.check_options(choices, Architecture(good))
    for bad, told in (
        ({"layer/0": "dense"}, "must decide 'layer/1'"),
        ({**good, "layer/1": "none"}, "Choice 'layer/1' must be one of dense, gate, skip, but got 'none'"),
        ({**good, "layer/2": "skip"}, "has no choice 'layer/2'; it has layer/0, layer/1"),
    ):
        with pytest.raises(ArchitectureError, match=told):
            space.check_options(choices, Architecture(bad))
