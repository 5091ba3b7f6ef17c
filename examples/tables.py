r"""A multilayer perceptron for tables, whose width, depth and activations are searched.

    nasengine search --space examples/tables.py:MLP --data sklearn:wine --epochs 30 --batch-size 16 \
        --set algo.alphas.lr=0.05
    nasengine train results/wine/MLP/rarts/seed-0 --epochs 50 --batch-size 16 --set train.lr=0.1

The algorithm is rarts; `--algo darts` is called alike, `--algo deps` and `--algo slimming` without `--set`.
`--data sklearn:breast_cancer` has two classes; `--data sklearn:diabetes` is a regression: one number comes out.
"""

from __future__ import annotations

import math

from torch import nn

from nasengine import ElasticDepth, ElasticLinear, MixedOp, Shapes, Size


class MLP(nn.Sequential):
    """A linear layer to the width, up to `layers` hidden layers, a linear layer to the outputs."""

    def __init__(self, shapes: Shapes, widths: tuple[int, ...] = (8, 16, 32, 64), layers: int = 3) -> None:
        width = Size("width", widths)
        hidden = [self._hidden(f"layer{place}", width) for place in range(1, layers + 1)]
        super().__init__(
            nn.Flatten(),
            ElasticLinear(math.prod(shapes.input), width),
            ElasticDepth("depth", hidden),
            ElasticLinear(width, shapes.outputs),
        )

    @staticmethod
    def _hidden(label: str, width: Size) -> nn.Module:
        activation = MixedOp(f"{label}/activation", {"relu": nn.ReLU(), "tanh": nn.Tanh(), "gelu": nn.GELU()})
        return nn.Sequential(activation, ElasticLinear(width, width))
