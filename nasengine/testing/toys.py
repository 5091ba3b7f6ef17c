"""Small models for tests: one that can be solved by hand, and the smallest real search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import MixedOp, Supernet
from nasengine.task import Batch, Shapes
from nasengine.testing._parts import random_batch, random_supernet


class _Plane(nn.Module):
    """The point (w, a): one weight, and the mixture weight of the one option of choice "a"."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
        self.a = MixedOp("a", {"one": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.w.expand_as(x), self.a(x)], dim=-1)


@dataclass(frozen=True, kw_only=True)
class SolvableSpace(Space):
    """The space of the solvable model; its one choice has one option."""

    def network(self, shapes: Shapes) -> nn.Module:
        del shapes
        return _Plane()


def solvable_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """L_train = (w - a)^2 where the target is 0, L_val = a w - 2a + 1 where it is 1."""
    w, a = outputs.unbind(-1)
    return torch.where(targets == 0, (w - a) ** 2, a * w - 2 * a + 1).mean()


class Solvable(NamedTuple):
    """A supernet with one weight, and the batches that stand for its two losses."""

    supernet: Supernet
    train: Batch
    valid: Batch


def solvable() -> Solvable:
    """The model of arXiv:1806.09055, figure 2, on the real classes, in float64 and with w = -2.

    min_a L_val(w*(a), a) has its answer at a = w = 1. Use relaxation="identity", which makes the alpha itself the
    weight a, and put a where it starts with `place(state.alphas, 2.0)`.
    """
    supernet = SolvableSpace().supernet(Shapes((), 2), solvable_loss)
    one = torch.ones(1, dtype=torch.float64)
    return Solvable(supernet, Batch(one, torch.tensor([0])), Batch(one, torch.tensor([1])))


def place(module: nn.Module, value: float) -> None:
    """Sets all parameters of a module (alphas, a copy of the weights) to one value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


# A small smooth network


class _Smooth(nn.Module):
    def __init__(self, shapes: Shapes, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(shapes.input[0], width), nn.BatchNorm1d(width))
        self.layers = nn.Sequential(*[self._layer(f"layer/{place}", width) for place in range(2)])
        self.classifier = nn.Linear(width, shapes.outputs)

    @staticmethod
    def _layer(label: str, width: int) -> MixedOp:
        dense = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        gate = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Sigmoid())
        return MixedOp(label, {"dense": dense, "gate": gate, "skip": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(torch.tanh(self.stem(x))))
        return logits


@dataclass(frozen=True, kw_only=True)
class SmoothSpace(Space):
    """Two layers out of three operations, infinitely differentiable, with batch norm: the smallest real search."""

    name: ClassVar[str] = ""

    width: int = 6

    def network(self, shapes: Shapes) -> nn.Module:
        return _Smooth(shapes, self.width)


def smooth(seed: int = 0) -> Solvable:
    """A small smooth classifier of 3 classes in float64, with two batches of 16 random points."""
    shapes, rng = Shapes((4,), 3), generator(seed, 1)
    supernet = random_supernet(SmoothSpace(), shapes, seed)
    return Solvable(supernet, *(random_batch(shapes, 16, rng) for _ in range(2)))
