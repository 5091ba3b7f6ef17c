"""The contract tests of elastic spaces find what they are there to find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine import testing
from nasengine.architecture import Architecture, Choice
from nasengine.attention import ElasticAttention
from nasengine.elastic import ElasticDepth, ElasticResolution, Size, active, mask
from nasengine.layers import (
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv2d,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticParameter,
)
from nasengine.space import Space
from nasengine.supernet import Decision, Gates, MixedOp, decided
from nasengine.task import Shapes
from nasengine.testing import check_space

SHAPES = Shapes((2, 6, 6), 3)
WIDTH, KERNEL = Size("width", (2, 3, 4)), Size("kernel", (3, 5))
Make = Callable[[], nn.Module]


def block(place: int) -> nn.Module:
    hidden = Size(f"block{place}/hidden", (2, 4))
    layers = (ElasticConv2d(WIDTH, hidden, 1), ElasticBatchNorm2d(hidden), nn.Hardswish())
    return nn.Sequential(*layers, ElasticConv2d(hidden, WIDTH, KERNEL, bias=True), ElasticBatchNorm2d(WIDTH))


def part() -> nn.Module:
    return nn.Identity()


class Small(nn.Module):
    """One of everything elastic, with parts for what a bad author writes.

    Args:
        middle: on images (batch, width, height, width).
        features: on features (batch, width).
    """

    def __init__(self, middle: Make, features: Make) -> None:
        super().__init__()
        first = (ElasticConv2d(2, WIDTH, KERNEL), nn.ReLU(), ElasticDepthwiseConv2d(WIDTH, KERNEL), nn.Dropout(0.5))
        self.stem = nn.Sequential(*first, ElasticBatchNorm2d(WIDTH, affine=False), nn.ReLU())
        self.blocks = ElasticDepth("depth", [block(place) for place in range(2)])
        self.op = MixedOp("op", {"skip": nn.Identity(), "tanh": nn.Tanh()})
        self.shift = ElasticParameter((1, 1), WIDTH)
        self.norm = ElasticLayerNorm(WIDTH)
        self.attention = ElasticAttention(WIDTH, Size("heads", (1, 2)), Size("dims", (2, 3)))
        self.head = ElasticLinear(WIDTH, 3)
        self.middle, self.features = middle(), features()

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(self.blocks(self.middle(self.stem(x))))
        tokens = x.flatten(2).transpose(1, 2) + self.shift()
        tokens = tokens + self.attention(self.norm(tokens))
        logits: Tensor = self.head(self.features(tokens.mean(1)))
        return logits


@dataclass(frozen=True, kw_only=True)
class SmallSpace(Space):
    middle: Make = part
    features: Make = part

    def network(self, shapes: Shapes) -> nn.Module:
        return ElasticResolution("pixels", (3, 4), Small(self.middle, self.features))


class Square(ElasticLinear):
    """From all features to as many."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, bias=False)


class ReadsAll(Square):
    """Hard slices as products with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        count = active(WIDTH)
        ones = (torch.arange(4) < count).to(x)
        factors = mask(WIDTH)
        inputs = ones if factors is None else ones * factors
        weight = self.linear.weight * ones[:, None] * inputs
        return F.linear(F.pad(x, [0, 4 - x.shape[-1]]), weight)[..., :count]


class StopsGradient(Square):
    """The hard pass trains a part of the weights only."""

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return output.detach() + 0 * output if isinstance(decided("width"), int) else output


class OwnStatistics(ElasticBatchNorm2d):
    """Normalises as it should, and forgets to move the statistics of a slice."""

    def __init__(self) -> None:
        super().__init__(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count = active(WIDTH)
        if count == 4:
            return super().forward(x)
        parts = [t[:count].clone() for t in (self.norm.running_mean, self.norm.running_var)]  # type: ignore[index]
        return F.batch_norm(x, *parts, self.norm.weight[:count], self.norm.bias[:count], self.training)


class MovesAll(OwnStatistics):
    """Moves the statistics of channels that are not there."""

    def forward(self, x: Tensor) -> Tensor:
        output = ElasticBatchNorm2d.forward(self, x)
        if self.training and isinstance(self.norm.running_mean, Tensor):
            self.norm.running_mean.data[active(WIDTH) :] = 0.0
        return output


class Unmasked(nn.Module):
    """Reads all units, whatever the mixture."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1)


class Unsortable(nn.Module):
    """Treats the units by their places."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1.0, 1 + x.shape[-1]).to(x)


class Mixing(Square):
    """Reads all units, but not their gates."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(decided("width"), Gates):
            return F.linear(x, self.linear.weight)
        return super().forward(x)


class Doubled(Square):
    """Has another answer to gates than to all units."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if isinstance(decided("width"), Gates) else 1)


class Wasteful(Square):
    """Computes all outputs, then cuts."""

    def forward(self, x: Tensor) -> Tensor:
        factors, count = mask(WIDTH), active(WIDTH)
        weight = self.linear.weight[:, :count]
        return F.linear(x, weight if factors is None else weight * factors)[..., :count]


class AllLayers(ElasticDepth):
    """Runs the layers that it leaves out."""

    def __init__(self) -> None:
        super().__init__("more", [ElasticBatchNorm2d(WIDTH), nn.Tanh()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            layer(x)
        return super().forward(x)


class Once(torch.autograd.Function):
    """tanh whose gradient is no function of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (1 - x.detach().tanh() ** 2)


class OnceTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = Once.apply(x)
        return output


class NotTwice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)


class Falling(Decision):
    """A width whose options fall."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = (Choice("falling", ("4", "2"), ordinal=True),)
        self.layers = nn.ModuleList([nn.Sequential(ElasticLinear(WIDTH, n), ElasticLinear(n, WIDTH)) for n in (4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        weights = decided("falling")
        if isinstance(weights, int):
            return torch.as_tensor(self.layers[weights](x))
        return torch.stack([w * layer(x) for w, layer in zip(weights, self.layers, strict=True)]).sum(0)

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        return self.layers[("4", "2").index(architecture["falling"])]


class NeverIdle(SmallSpace):
    def unused(self, choices: Mapping[str, Choice], architecture: Architecture) -> Collection[str]:
        return ["heads"]


class Loose(SmallSpace):
    """Its samples are not in their canonical form."""

    def derive(self, choices: Mapping[str, Choice], weights: Mapping[str, Tensor]) -> Architecture:
        return Architecture({label: c.options[int(weights[label].argmax())] for label, c in choices.items()})

    def check(self, choices: Mapping[str, Choice], architecture: Architecture) -> None:
        del choices, architecture


def test_a_good_space_passes() -> None:
    check_space(SmallSpace(), SHAPES)


@pytest.mark.parametrize(
    ("check", "space", "law"),
    [
        ("relaxation", SmallSpace(features=Unmasked), "one-hot must equal hard"),
        ("slices", SmallSpace(features=ReadsAll), "weights outside an architecture must have no part"),
        ("slices", SmallSpace(features=StopsGradient), "must give the gradients of the extracted network"),
        ("slices", SmallSpace(middle=OwnStatistics), "must give the statistics of the extracted network"),
        ("slices", SmallSpace(middle=MovesAll), "but it changed .*running_mean there"),
        ("second_order", SmallSpace(features=OnceTanh), "must have the second derivatives"),
        ("second_order", SmallSpace(features=NotTwice), "must be differentiable twice, but torch says: .*hardsigmoid"),
        ("idle", NeverIdle(), "idle choices must have no effect, but of .*heads"),
        ("order", SmallSpace(features=Falling), "options of 'falling' must be in rising order"),
        ("sorting", SmallSpace(features=Unsortable), "units that change places must not change"),
        ("gates", SmallSpace(features=Mixing), "the network cut by its gates must equal the gated one"),
        ("gates", SmallSpace(features=Doubled), "gates of one must be the full network"),
        ("hard_cost", SmallSpace(features=Wasteful), "must compute no more than the extracted network"),
        ("hard_cost", SmallSpace(middle=AllLayers), r"must run the chosen options alone, but \['Tanh'\] ran as well"),
        ("text", Loose(), "must be in its canonical form"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_bad_spaces_do_not(check: str, space: Space, law: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){law}"):
        getattr(testing, f"check_{check}")(space, SHAPES)


def test_check_space_checks_all_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    laws = {name for name in testing.__all__ if name.startswith("check_")}
    laws -= {"check_space", "check_algorithm", "check_predictor", "check_settings"}
    ran = set()
    for name in laws:
        monkeypatch.setattr(testing.spaces, name, lambda space, shapes, name=name: ran.add(name))
    check_space(SmallSpace(), SHAPES)
    assert ran == laws


def test_gradients_count_where_there_is_one_output() -> None:
    space, shapes = SmallSpace(features=StopsGradient), replace(SHAPES, outputs=1)
    with pytest.raises(AssertionError, match="must give the gradients of the extracted network"):
        testing.check_slices(space, shapes)
