"""What the tests of rankings share: a space of 243 architectures, and labels that tell how good each is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from torch import nn

from nasengine.architecture import Architecture
from nasengine.ranking import RankResult, rank
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.supernet import MixedOp
from nasengine.task import Shapes

SPEC = f"{Path(__file__)}:Five"
SHAPES = Shapes((4,), 3)
GAINS = {"linear": 0.0, "relu": 1.0, "skip": 0.4}


@dataclass(frozen=True, kw_only=True)
class Five(Space):
    """Five layers of three options each."""

    name: ClassVar[str] = "five"

    width: int = setting(8, "features of a layer", low=1)

    def __post_init__(self) -> None:
        validate(self, "space")

    def network(self, shapes: Shapes) -> nn.Module:
        layers = [self._layer(f"layer/{place}") for place in range(5)]
        return nn.Sequential(nn.Linear(4, self.width), *layers, nn.Linear(self.width, shapes.outputs))

    def _layer(self, label: str) -> MixedOp:
        return MixedOp(
            label,
            {
                "linear": nn.Linear(self.width, self.width),
                "relu": nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU()),
                "skip": nn.Identity(),
            },
        )


def truth(architecture: Architecture) -> float:
    """Better with relu, and more so in later layers."""
    return sum((1 + place) * GAINS[option] for place, option in enumerate(architecture.values()))


def table(count: int, seed: int = 0) -> pd.DataFrame:
    """Random labels of different architectures."""
    every = Five().everything(SHAPES)
    chosen = [every[int(row)] for row in np.random.default_rng(seed).permutation(len(every))[:count]]
    return pd.DataFrame({"architecture": map(str, chosen), "score": map(truth, chosen)})


def ranked(labels: pd.DataFrame | Path | str, out: Path, *settings: str, **more: object) -> RankResult:
    """A ranking of that space that is not judged unless it is asked for."""
    given = ("rank.evaluate=false", *settings)
    return rank(Five(), labels, task=SHAPES, settings=given, out=out, **more)  # type: ignore[arg-type]
