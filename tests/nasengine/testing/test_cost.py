from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nasengine.architecture import Architecture
from nasengine.budget import CostModel
from nasengine.elastic import ElasticLayer
from nasengine.space import Space
from nasengine.supernet import MixedOp, Mixture
from nasengine.task import Shapes
from nasengine.testing import SizedSpace, SmoothSpace, check_cost

SHAPES = Shapes((4,), 3)


class BiggerBlueprint(SmoothSpace):
    def blueprint(self, shapes: Shapes) -> nn.Module:
        return SmoothSpace(width=self.width + 1).network(shapes)


class OtherChoices(SmoothSpace):
    def blueprint(self, shapes: Shapes) -> nn.Module:
        return nn.Sequential(MixedOp("layer/0", {"dense": nn.Linear(4, 3)}))


class Undeclared(ElasticLayer):
    """A layer that does not say how many weights it has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(x)
        return output

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        return self.linear


@dataclass(frozen=True, kw_only=True)
class Silent(Space):
    def network(self, shapes: Shapes) -> nn.Module:
        layer = Undeclared()
        layer.choices = ()
        return nn.Sequential(layer, MixedOp("end", {"a": nn.Identity(), "b": nn.Tanh()}))


def test_good_spaces_pass() -> None:
    check_cost(SmoothSpace(), SHAPES)
    check_cost(SizedSpace(), Shapes((2, 5), 3))


@pytest.mark.parametrize(
    ("space", "law"),
    [
        (BiggerBlueprint(), r"must cost what the model says, \d+ parameters and \d+ multiply-adds, but it costs"),
        (OtherChoices(), "the blueprint must have the choices of the space"),
        (Silent(), "must cost what the model says, 0 parameters"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Space) else None,
)
def test_bad_spaces_do_not(space: Space, law: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){law}"):
        check_cost(space, SHAPES)


def test_an_expectation_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CostModel.expected

    def off(model: CostModel, mixture: Mixture) -> tuple[float, float]:
        return float(expected(model, mixture)[0]) + 1, float(expected(model, mixture)[1])

    monkeypatch.setattr(CostModel, "expected", off)
    with pytest.raises(AssertionError, match="must be exact where all is decided"):
        check_cost(SmoothSpace(), SHAPES)
