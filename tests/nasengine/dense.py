"""The smallest space for any input that is not an image: two layers of three options on tables or texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.supernet import MixedOp
from nasengine.task import Shapes


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class Dense(Space):
    """Linear layers behind a linear stem, or behind the mean of embedded tokens."""

    name: ClassVar[str] = "dense"

    width: int = setting(8, "features of a layer", low=1)

    def __post_init__(self) -> None:
        validate(self, "space")

    def network(self, shapes: Shapes) -> nn.Module:
        stem: nn.Module = nn.Linear(math.prod(shapes.input), self.width)
        if shapes.vocabulary:
            stem = nn.Sequential(nn.Embedding(shapes.vocabulary, self.width), _Mean())
        layers = [self._layer(f"layer/{place}") for place in range(2)]
        return nn.Sequential(nn.Flatten(), stem, *layers, nn.Linear(self.width, shapes.outputs))

    def _layer(self, label: str) -> MixedOp:
        options = {
            "linear": nn.Linear(self.width, self.width),
            "relu": nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU()),
            "skip": nn.Identity(),
        }
        return MixedOp(label, options)
