"""The DARTS networks and hypergradients give the numbers that the public implementation gives.

`tests/golden/darts_reference.json` holds what that implementation computed, in float64, with every parameter, alpha, momentum buffer and
image drawn by `drawn` from its name. The names follow the structure of the published network, so that nothing of the other code
is needed to repeat the comparison.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.bilevel import Evaluate, VirtualStep, first_order, second_order
from nasengine.supernet import MixedOp, Supernet
from nasengine.task import Batch, Shapes
from search_spaces.darts import DARTS, KINDS, DerivedCell, SearchCell

GOLDEN: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "darts_reference.json").read_text(encoding="utf-8")
)
RATE, MOMENTUM, DECAY = 0.025, 0.9, 3e-4


def drawn(name: str, shape: tuple[int, ...], scale: float, shift: float = 0.0) -> Tensor:
    """Normal numbers that depend on the name alone; numpy guarantees this generator's stream for ever."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(shift + scale * np.asarray(numbers))


def value(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter; `kind` is "weight" or "bias"."""
    if len(shape) == 1:
        return drawn(name, shape, 0.1, shift=1.0 if kind == "weight" else 0.0)
    return drawn(name, shape, (2.0 / float(np.prod(shape[1:]))) ** 0.5)


def parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The named places of the published network that hold parameters."""
    for name in ("stem", "auxiliary", "classifier"):
        if isinstance(module := getattr(network, name), nn.Module):
            yield name, module
    assert isinstance(network.cells, nn.ModuleList)
    for index, cell in enumerate(network.cells):
        assert isinstance(cell, (SearchCell, DerivedCell))
        yield f"cells.{index}.before_last", cell.preprocess.before_last
        yield f"cells.{index}.last", cell.preprocess.last
        for edge, module in cell.edges.items():
            if isinstance(module, MixedOp):
                for option, operation in zip(module.choice.options, module.options, strict=True):
                    yield f"cells.{index}.{edge}.{option}", operation
            else:
                yield f"cells.{index}.{edge}", module


def canonical(network: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Parameters as canonical name -> (weight or bias, parameter), the i-th of a part being called `part.i`."""
    found = {
        f"{part}.{place}": (name.rpartition(".")[2], parameter)
        for part, module in parts(network)
        for place, (name, parameter) in enumerate(module.named_parameters())
    }
    assert len(found) == len(list(network.parameters()))
    return found


def fill(network: nn.Module) -> dict[str, Tensor]:
    """Gives every parameter the value of its canonical name, and returns the parameters by that name."""
    found = canonical(network)
    with torch.no_grad():
        for name, (kind, parameter) in found.items():
            parameter.copy_(value(name, kind, tuple(parameter.shape)))
    return {name: parameter for name, (_, parameter) in found.items()}


def batch(name: str, size: int, side: int, dtype: torch.dtype) -> Batch:
    return Batch(drawn(f"images.{name}", (size, 3, side, side), 1.0).to(dtype), torch.arange(size) * 3 % 10)


def summary(gradients: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Per stem, cell and head: the norm of its gradients, and their product with random directions of the same shapes."""
    groups: dict[str, list[str]] = {}
    for name in gradients:
        groups.setdefault(".".join(name.split(".")[: 2 if name.startswith("cells") else 1]), []).append(name)
    result = {}
    for group, names in groups.items():
        square = sum(float(gradients[name].double().square().sum()) for name in names)
        probes = {name: drawn(f"probe.{name}", tuple(gradients[name].shape), 1.0) for name in names}
        product = sum(float((gradients[name].double() * probes[name]).sum()) for name in names)
        result[group] = [square**0.5, product]
    return result


def worst(actual: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> float:
    """Largest difference of two summaries, relative to the norm of the group."""
    assert actual.keys() == expected.keys()
    return max(
        abs(a - e) / expected[group][0] for group in expected for a, e in zip(actual[group], expected[group], strict=True)
    )


def relative(actual: Tensor, expected: object) -> float:
    """Largest difference relative to the largest expected number."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    return float((actual.double() - wanted).abs().max() / wanted.abs().max())


class Search:
    """Our supernet at the values of the reference."""

    def __init__(self, channels: int, layers: int, side: int, dtype: torch.dtype) -> None:
        space, shapes = DARTS(channels=channels, layers=layers), Shapes((3, side, side), 10)
        self.supernet: Supernet = space.supernet(shapes, F.cross_entropy).to(dtype)
        self.weights = fill(self.supernet.network)
        edges = [f"{source}-{node}" for source, node in space.edges()]
        self.labels = {kind: [f"{kind}/{edge}" for edge in edges] for kind in KINDS}
        self.alphas = [drawn(f"alphas.{kind}", (14, 8), 0.5).to(dtype).requires_grad_() for kind in KINDS]

    def mixture(self) -> dict[str, Tensor]:
        tables = zip(KINDS, self.alphas, strict=True)
        return {
            label: row for kind, table in tables for label, row in zip(self.labels[kind], table.softmax(-1), strict=True)
        }

    def evaluate(self, data: Batch) -> Evaluate:
        return lambda weights: self.supernet.evaluate(data, self.mixture(), weights)

    def named(self) -> dict[str, Tensor]:
        return dict(self.supernet.named_parameters())

    def buffers(self) -> dict[str, Tensor]:
        """Momentum buffers by parameter name."""
        canonical_names = {id(parameter): name for name, parameter in self.weights.items()}
        return {
            name: drawn(f"momentum.{canonical_names[id(p)]}", tuple(p.shape), 0.01).to(p) for name, p in self.named().items()
        }
