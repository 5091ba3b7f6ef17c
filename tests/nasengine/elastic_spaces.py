"""Elastic spaces for tests beside the toy of `nasengine.testing`: networks small enough to write out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.elastic import Size
from nasengine.layers import ElasticLayerNorm, ElasticLinear
from nasengine.measure import mean_squared_error
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Supernet, Weights
from nasengine.task import Batch, Shapes
from nasengine.testing import SizedSpace, Solvable

UNITS = SizedSpace(widths=(1, 2, 3, 4), hidden=(1, 2, 3, 4))
"""The toy, where every number of units is an option."""


@dataclass(frozen=True, kw_only=True)
class Layers(Space):
    """Two hidden layers (4 -> a -> b -> outputs) with any number of units and a layer norm."""

    def network(self, shapes: Shapes) -> nn.Module:
        a, b = Size("a", (1, 2, 3, 4, 5)), Size("b", (1, 2, 3, 4))
        hidden = (ElasticLinear(4, a), nn.GELU(), ElasticLinear(a, b), ElasticLayerNorm(b), nn.Tanh())
        return nn.Sequential(*hidden, ElasticLinear(b, shapes.outputs))


@dataclass(frozen=True, kw_only=True)
class Hidden(Space):
    """One hidden layer of 1 to 4 units: tanh(x a^T + c) b^T + d."""

    def network(self, shapes: Shapes) -> nn.Module:
        size = Size("hidden", (1, 2, 3, 4))
        return nn.Sequential(ElasticLinear(2, size), nn.Tanh(), ElasticLinear(size, shapes.outputs))


def hidden(regression: bool = False) -> Solvable:
    """`Hidden` in float64 with two batches of 8 points: in 3 classes, or with 3 targets each."""
    rng = generator(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = mean_squared_error if regression else F.cross_entropy
        supernet = Hidden().supernet(Shapes((2,), 3), loss).double()
    inputs = torch.randn(2, 8, 2, generator=rng, dtype=torch.float64)
    classes = torch.randint(3, (2, 8), generator=rng)
    numbers = torch.randn(2, 8, 3, generator=rng, dtype=torch.float64)
    targets = numbers if regression else classes
    return Solvable(supernet, *(Batch(x, t) for x, t in zip(inputs, targets, strict=True)))


def hidden_outputs(weights: Weights, inputs: Tensor, units: int) -> Tensor:
    """What the subnet of `units` units computes, written out."""
    a, c = weights["network.0.linear.weight"][:units], weights["network.0.linear.bias"][:units]
    b, d = weights["network.2.linear.weight"][:, :units], weights["network.2.linear.bias"]
    return torch.tanh(inputs @ a.T + c) @ b.T + d


def weights_of(supernet: Supernet) -> dict[str, Tensor]:
    """A copy of all weights by name, with gradient."""
    return {name: p.detach().clone().requires_grad_() for name, p in supernet.named_parameters()}
