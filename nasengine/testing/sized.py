"""The smallest network with every kind of size: a toy for what algorithms do with widths, kernels and depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from nasengine.elastic import ElasticDepth, Size
from nasengine.layers import ElasticBatchNorm1d, ElasticConv1d, ElasticLinear
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import MixedOp
from nasengine.task import Shapes
from nasengine.testing._parts import random_batch, random_supernet
from nasengine.testing.toys import Solvable

SIZED_SHAPES: Final = Shapes((2, 5), 3)
"""What `sized` is made for."""


class _Block(nn.Module):
    """A residual block with a hidden width and a kernel of its own."""

    def __init__(self, width: Size, place: int, hidden: tuple[int, ...], kernels: tuple[int, ...]) -> None:
        super().__init__()
        size = Size(f"block{place}/hidden", hidden)
        self.inside = nn.Sequential(
            ElasticConv1d(width, size, Size(f"block{place}/kernel", kernels)),
            ElasticBatchNorm1d(size),
            nn.Tanh(),
            ElasticConv1d(size, width, 1, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.inside(x)
        return total


class _Sized(nn.Module):
    def __init__(self, shapes: Shapes, space: SizedSpace) -> None:
        super().__init__()
        width = Size("width", space.widths)
        self.stem = nn.Sequential(ElasticConv1d(shapes.input[0], width, 3), ElasticBatchNorm1d(width))
        blocks = [_Block(width, place, space.hidden, space.kernels) for place in range(1, space.blocks + 1)]
        self.blocks = ElasticDepth("depth", blocks)
        self.norm = ElasticBatchNorm1d(width)
        self.last = MixedOp("last", {"tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "skip": nn.Identity()})
        self.classifier = ElasticLinear(width, shapes.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(x.mean(dim=-1))
        return logits


@dataclass(frozen=True, kw_only=True)
class SizedSpace(Space):
    """Signals (channels, length) through a stem and some residual blocks, infinitely differentiable.

    The choices are "width" of the residual stream, "depth", in every block "block1/hidden" and "block1/kernel", and
    one between operations, "last".
    """

    name: ClassVar[str] = ""

    widths: tuple[int, ...] = (2, 4)
    hidden: tuple[int, ...] = (1, 2, 4)
    kernels: tuple[int, ...] = (1, 3)
    blocks: int = 2

    def network(self, shapes: Shapes) -> nn.Module:
        return _Sized(shapes, self)


def sized(seed: int = 0, space: SizedSpace | None = None) -> Solvable:
    """A small elastic classifier of 3 classes in float64, with two batches of 16 random signals.

    Its statistics and norms are as after some training: none is at its start.
    """
    shapes, rng = SIZED_SHAPES, generator(seed, 1)
    supernet = random_supernet(space or SizedSpace(), shapes, seed)
    with torch.no_grad():
        for norm in (module for module in supernet.modules() if isinstance(module, nn.BatchNorm1d)):
            assert norm.running_mean is not None and norm.running_var is not None
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.add_(torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype), alpha=0.5)
    return Solvable(supernet, *(random_batch(shapes, 16, rng) for _ in range(2)))
