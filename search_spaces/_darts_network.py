"""The networks of the DARTS space: search cells, derived cells, stems and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from nasengine.errors import DataError
from nasengine.operations import OPERATIONS, DropPath, FactorizedReduce, relu_conv_norm, states_of
from nasengine.supernet import MixedOp, Shared
from nasengine.task import Shapes

POOLS = ("max_pool_3x3", "avg_pool_3x3")


class Form(Protocol):
    """What a network takes from the settings of its space."""

    @property
    def channels(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def nodes(self) -> int: ...

    @property
    def stem(self) -> str: ...


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands: the channels it gets and has, whether it and the one before it reduce."""

    before_last: int
    last: int
    channels: int
    reduction: bool
    after_reduction: bool


CellFactory = Callable[[str, CellPlan], nn.Module]


def _plans(space: Form, stem_channels: int, imagenet: bool) -> Iterator[CellPlan]:
    before_last, last, channels, reduced = stem_channels, stem_channels, space.channels, imagenet
    for layer in range(space.layers):
        reduction = layer in (space.layers // 3, 2 * space.layers // 3)
        channels *= 2 if reduction else 1
        yield CellPlan(before_last, last, channels, reduction, reduced)
        before_last, last, reduced = last, space.nodes * channels, reduction


def _require_image(shapes: Shapes) -> None:
    if len(shapes.input) != 3:
        raise DataError(
            f"Space 'darts' needs images (channels, height, width), but one input has shape {shapes.input}; "
            "take other data or another space."
        )


class _Preprocess(nn.Module):
    """Brings the outputs of the two cells before to one number of channels and one size."""

    def __init__(self, plan: CellPlan, affine: bool) -> None:
        super().__init__()
        self.before_last = (
            FactorizedReduce(plan.before_last, plan.channels, affine, nn.ReLU())
            if plan.after_reduction
            else relu_conv_norm(plan.before_last, plan.channels, affine)
        )
        self.last = relu_conv_norm(plan.last, plan.channels, affine)

    def forward(self, before_last: Tensor, last: Tensor) -> list[Tensor]:
        return [self.before_last(before_last), self.last(last)]


class SearchCell(nn.Module):
    """All operations on all edges; what the edges that leave a state have in common is computed once: ReLU, poolings.

    Pooling is followed by batch norm; in a search no batch norm has learned scales (section A.1.1 of the paper).
    """

    def __init__(self, kind: str, nodes: int, plan: CellPlan, affine: bool = False) -> None:
        super().__init__()
        self.preprocess = _Preprocess(plan, affine)
        self.nodes = nodes
        common = [self._common(plan, source) for source in range(nodes + 1)]
        self.edges = nn.ModuleDict()
        for node in range(2, nodes + 2):
            for source in range(node):
                options = {**self._own(plan, source, common[source]["relu"], affine), **common[source]}
                label = f"{source}-{node}"
                self.edges[label] = MixedOp(f"{kind}/{label}", {name: options[name] for name in OPERATIONS})

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = states_of(self.preprocess(before_last, last), self.edges, self.nodes + 1)
        return torch.cat(states[2:], dim=1)

    @staticmethod
    def _common(plan: CellPlan, source: int) -> dict[str, nn.Module]:
        stride = 2 if plan.reduction and source < 2 else 1
        relu = Shared(nn.ReLU())
        shared: dict[str, nn.Module] = {"relu": relu}
        for name in POOLS:
            pool = OPERATIONS[name](plan.channels, stride, False, relu)
            shared[name] = Shared(nn.Sequential(pool, nn.BatchNorm2d(plan.channels, affine=False)))
        return shared

    @staticmethod
    def _own(plan: CellPlan, source: int, relu: nn.Module, affine: bool) -> dict[str, nn.Module]:
        stride = 2 if plan.reduction and source < 2 else 1
        return {
            name: make(plan.channels, stride, affine, relu) for name, make in OPERATIONS.items() if "pool" not in name
        }


class BlueprintCell(SearchCell):
    """All operations on all edges as they are in a derived cell: with learned scales, and nothing for "none"."""

    def __init__(self, kind: str, nodes: int, plan: CellPlan) -> None:
        super().__init__(kind, nodes, plan, affine=True)

    @staticmethod
    def _common(plan: CellPlan, source: int) -> dict[str, nn.Module]:
        relu, stride = nn.ReLU(), 2 if plan.reduction and source < 2 else 1
        return {"relu": relu, **{name: OPERATIONS[name](plan.channels, stride, True, relu) for name in POOLS}}


class DerivedCell(nn.Module):
    """The operations of one architecture, with learned scales, and drop path on all but identities."""

    def __init__(self, inputs: list[list[tuple[int, str]]], plan: CellPlan) -> None:
        super().__init__()
        self.preprocess = _Preprocess(plan, affine=True)
        self.last = len(inputs) + 1
        self.edges = nn.ModuleDict()
        for node, pairs in enumerate(inputs, start=2):
            for source, operation in pairs:
                stride = 2 if plan.reduction and source < 2 else 1
                module = OPERATIONS[operation](plan.channels, stride, True, nn.ReLU())
                identity = isinstance(module, nn.Identity)
                self.edges[f"{source}-{node}"] = module if identity else nn.Sequential(module, DropPath())

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = states_of(self.preprocess(before_last, last), self.edges, self.last)
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """Stem, cells, global pooling, a linear classifier; with an auxiliary head (logits, auxiliary) in training."""

    def __init__(self, space: Form, shapes: Shapes, cell: CellFactory, auxiliary: bool = False) -> None:
        super().__init__()
        _require_image(shapes)
        imagenet = space.stem == "imagenet" or (space.stem == "auto" and min(shapes.input[1:]) >= 96)
        self.stem = (
            ImageNetStem(shapes.input[0], space.channels) if imagenet else CifarStem(shapes.input[0], space.channels)
        )
        plans = list(_plans(space, self.stem.channels, imagenet))
        self.cells = nn.ModuleList(cell("reduce" if plan.reduction else "normal", plan) for plan in plans)
        self.auxiliary_after = 2 * space.layers // 3
        width = space.nodes * plans[self.auxiliary_after].channels
        self.auxiliary = AuxiliaryHead(width, shapes.outputs, imagenet) if auxiliary else None
        self.classifier = nn.Linear(space.nodes * plans[-1].channels, shapes.outputs)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        states, auxiliary = self.stem(x), None
        for index, cell in enumerate(self.cells):
            states = (states[1], cell(*states))
            if index == self.auxiliary_after and self.auxiliary is not None and self.training:
                auxiliary = self.auxiliary(states[1])
        logits: Tensor = self.classifier(states[1].mean(dim=(2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)


class CifarStem(nn.Module):
    """One 3x3 convolution to three times the channels."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.channels = 3 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, self.channels, 3, padding=1, bias=False), nn.BatchNorm2d(self.channels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(x)
        return x, x


class ImageNetStem(nn.Module):
    """Three convolutions of stride 2; the cells get the outputs of the second and of the third."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Sequential(
            nn.Conv2d(inputs, channels // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.second = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return x, self.second(x)


class AuxiliaryHead(nn.Module):
    """A classifier on features at two thirds of the depth.

    Differs from the published code: features of another size than its 8x8 (CIFAR) and 7x7 (ImageNet) are pooled to
    2x2 evenly.
    """

    def __init__(self, channels: int, classes: int, imagenet: bool) -> None:
        super().__init__()
        self.size, self.stride = (7, 2) if imagenet else (8, 3)
        norm = [] if imagenet else [nn.BatchNorm2d(768)]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            *norm,
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        if tuple(x.shape[-2:]) == (self.size, self.size):
            x = nn.functional.avg_pool2d(x, 5, self.stride)
        else:
            x = nn.functional.adaptive_avg_pool2d(x, 2)
        logits: Tensor = self.layers(x)
        return logits
