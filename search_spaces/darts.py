"""The DARTS space: a normal and a reduction cell, stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import networkx as nx
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.encoding import Graphs, encode_cells
from nasengine.errors import ArchitectureError, DataError, SettingError
from nasengine.operations import OPERATIONS, DropPath, FactorizedReduce, relu_conv_norm
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.supernet import MixedOp, Shared
from nasengine.task import Shapes
from search_spaces._genotype import Genotype, read_genotype, write_genotype

KINDS = ("normal", "reduce")
POOLS = ("max_pool_3x3", "avg_pool_3x3")


@dataclass(frozen=True, kw_only=True)
class DARTS(Space):
    """Cells of DARTS: 2 inputs, 4 nodes, 8 operations on 14 edges; a normal and a reduction cell.

    A cell's choices are its edges, "normal/0-2" from state 0 to state 2; states 0 and 1 are the outputs of the two
    cells before. A derived cell keeps for every node the two incoming edges with the strongest operation other than
    "none"; the others are "none". Reduction cells stand at one and two thirds of the depth.

    References: Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055, sections 2.1, 2.4 and A.1.
    """

    name: ClassVar[str] = "darts"

    channels: int = setting(16, "channels of the first cells, an even number", low=2)
    layers: int = setting(8, "cells, three or more", low=3)
    nodes: int = setting(4, "intermediate nodes of a cell", low=1, high=8)
    stem: Literal["auto", "cifar", "imagenet"] = setting("auto", "imagenet (3 strides) from 96 pixels on if auto")
    auxiliary: bool = setting(False, "auxiliary head on the derived network")

    def __post_init__(self) -> None:
        validate(self, "space")
        if self.channels % 2:
            raise SettingError(f"space.channels must be an even number, but got {self.channels}.")

    def edges(self) -> list[tuple[int, int]]:
        """(from, to) of all edges in the published order."""
        return [(source, node) for node in range(2, self.nodes + 2) for source in range(node)]

    def choices(self, shapes: Shapes | None = None) -> dict[str, Choice]:
        labels = [f"{kind}/{source}-{node}" for kind in KINDS for source, node in self.edges()]
        return {label: Choice(label, tuple(OPERATIONS)) for label in labels}

    def network(self, shapes: Shapes) -> nn.Module:
        return Network(self, shapes, lambda kind, plan: SearchCell(kind, self.nodes, plan))

    def blueprint(self, shapes: Shapes) -> nn.Module:
        return Network(self, shapes, lambda kind, plan: BlueprintCell(kind, self.nodes, plan))

    def final(self) -> DARTS:
        """20 cells, 36 channels and an auxiliary head, as published for CIFAR-10."""
        return dataclasses.replace(self, channels=36, layers=20, auxiliary=True)

    def build(self, architecture: Architecture, shapes: Shapes) -> nn.Module:
        return Network(
            self, shapes, lambda kind, plan: DerivedCell(self.inputs(architecture, kind), plan), self.auxiliary
        )

    def inputs(self, architecture: Architecture, kind: str) -> list[list[tuple[int, str]]]:
        """For every node of a cell: its (source state, operation) pairs."""
        return [
            [(s, op) for s in range(node) if (op := architecture[f"{kind}/{s}-{node}"]) != "none"]
            for node in range(2, self.nodes + 2)
        ]

    def check(self, choices: Mapping[str, Choice], architecture: Architecture) -> None:
        super().check(choices, architecture)
        for kind in KINDS:
            for node, pairs in enumerate(self.inputs(architecture, kind), start=2):
                if len(pairs) != 2:
                    raise ArchitectureError(
                        f"Every node must keep two incoming edges, but node {node} of the {kind} cell has {len(pairs)}."
                    )

    def derive(self, choices: Mapping[str, Choice], weights: Mapping[str, Tensor]) -> Architecture:
        """Section 2.4: the two strongest edges of every node, by their strongest operation other than "none"."""
        operations = tuple(OPERATIONS)[1:]
        kept = dict.fromkeys(choices, "none")
        for kind in KINDS:
            for node in range(2, self.nodes + 2):
                labels = [f"{kind}/{source}-{node}" for source in range(node)]
                rows = {label: weights[label].detach()[1:] for label in labels}
                strongest = sorted(labels, key=lambda label: -float(rows[label].max()))[:2]
                kept |= {label: operations[int(rows[label].argmax())] for label in strongest}
        return Architecture(kept)

    def likelihood(
        self, choices: Mapping[str, Choice], weights: Mapping[str, Tensor], architecture: Architecture
    ) -> float:
        """The sum of the weights of the kept operations, by which `derive` ranks them."""
        names = tuple(OPERATIONS)
        return sum(float(weights[label][names.index(op)]) for label, op in architecture.items() if op != "none")

    def graphs(self, architecture: Architecture) -> dict[str, nx.DiGraph[str]]:
        names = ["c_{k-2}", "c_{k-1}", *map(str, range(self.nodes)), "c_{k}"]
        graphs: dict[str, nx.DiGraph[str]] = {}
        for kind in KINDS:
            graph = graphs[kind] = nx.DiGraph()
            graph.add_nodes_from(names)
            for node, pairs in enumerate(self.inputs(architecture, kind), start=2):
                for source, operation in pairs:
                    graph.add_edge(names[source], names[node], operation=operation)
                graph.add_edge(names[node], names[-1], operation="")
        return graphs

    def encode(self, architectures: Sequence[Architecture], shapes: Shapes) -> Graphs:
        del shapes
        operations = [name for name in OPERATIONS if name != "none"]
        cells = [self.graphs(architecture) for architecture in architectures]
        return encode_cells(cells, operations, ("c_{k-2}", "c_{k-1}"), identities=("skip_connect",))

    def write(self, architecture: Architecture) -> str:
        cells = {kind: [(op, s) for pairs in self.inputs(architecture, kind) for s, op in pairs] for kind in KINDS}
        concat = list(range(2, self.nodes + 2))
        return write_genotype(Genotype(cells["normal"], concat, cells["reduce"], concat))

    def read(self, text: str) -> Architecture:
        """A genotype, or the text of an architecture."""
        if text.lstrip().startswith(tuple(f"{kind}/" for kind in KINDS)):
            architecture = Architecture.parse(text)
            self.check(self.choices(), architecture)
            return architecture
        genotype = read_genotype(text)
        options = dict.fromkeys(self.choices(), "none")
        for kind, pairs, concat in zip(KINDS, genotype[::2], genotype[1::2], strict=True):
            if len(pairs) != 2 * self.nodes or list(concat) != list(range(2, self.nodes + 2)):
                raise ArchitectureError(
                    f"A genotype for space.nodes={self.nodes} must have {2 * self.nodes} pairs in the {kind} cell and "
                    f"join all nodes, but got {len(pairs)} pairs joined over {list(concat)}."
                )
            for place, (operation, source) in enumerate(pairs):
                label = f"{kind}/{source}-{place // 2 + 2}"
                if options.get(label) != "none":
                    raise ArchitectureError(
                        f"Every node must have two different earlier inputs, but node {place // 2 + 2} of the {kind} "
                        f"cell has ({operation!r}, {source})."
                    )
                options[label] = operation
        architecture = Architecture(options)
        self.check(self.choices(), architecture)
        return architecture

    def indicators(self, architecture: Architecture) -> dict[str, float]:
        return {f"skips_{kind}": self._skips(architecture, kind) for kind in KINDS}

    def warning(self, architecture: Architecture) -> str:
        skips, edges = self._skips(architecture, "normal"), 2 * self.nodes
        if 2 * skips <= edges:
            return ""
        return f"{skips} of the {edges} edges of the normal cell are skip connections: the search may be collapsing."

    def _skips(self, architecture: Architecture, kind: str) -> int:
        return sum(op == "skip_connect" for pairs in self.inputs(architecture, kind) for _, op in pairs)


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands: the channels it gets and has, whether it and the one before it reduce."""

    before_last: int
    last: int
    channels: int
    reduction: bool
    after_reduction: bool


CellFactory = Callable[[str, CellPlan], nn.Module]


def _plans(space: DARTS, stem_channels: int, imagenet: bool) -> Iterator[CellPlan]:
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
        states = self.preprocess(before_last, last)
        for node in range(2, self.nodes + 2):
            terms = [self.edges[f"{source}-{node}"](state) for source, state in enumerate(states)]
            states.append(sum(terms[1:], start=terms[0]))
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

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = self.preprocess(before_last, last)
        for node in range(2, self.nodes + 2):
            edges = (cast(MixedOp, self.edges[f"{source}-{node}"]) for source in range(node))
            terms = [edge(state) for edge, state in zip(edges, states, strict=True) if not edge.is_zero()]
            states.append(sum(terms[1:], start=terms[0]))
        return torch.cat(states[2:], dim=1)

    @staticmethod
    def _common(plan: CellPlan, source: int) -> dict[str, nn.Module]:
        relu, stride = nn.ReLU(), 2 if plan.reduction and source < 2 else 1
        return {"relu": relu, **{name: OPERATIONS[name](plan.channels, stride, True, relu) for name in POOLS}}


class DerivedCell(nn.Module):
    """The operations of one architecture, with learned scales, and drop path on all but identities."""

    def __init__(self, inputs: list[list[tuple[int, str]]], plan: CellPlan) -> None:
        super().__init__()
        self.preprocess = _Preprocess(plan, affine=True)
        self.sources = [[source for source, _ in pairs] for pairs in inputs]
        self.edges = nn.ModuleDict()
        for node, pairs in enumerate(inputs, start=2):
            for source, operation in pairs:
                stride = 2 if plan.reduction and source < 2 else 1
                module = OPERATIONS[operation](plan.channels, stride, True, nn.ReLU())
                identity = isinstance(module, nn.Identity)
                self.edges[f"{source}-{node}"] = module if identity else nn.Sequential(module, DropPath())

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = self.preprocess(before_last, last)
        for node, sources in enumerate(self.sources, start=2):
            terms = [self.edges[f"{source}-{node}"](states[source]) for source in sources]
            states.append(sum(terms[1:], start=terms[0]))
        return torch.cat(states[2:], dim=1)


class Network(nn.Module):
    """Stem, cells, global pooling, a linear classifier; with an auxiliary head (logits, auxiliary) in training."""

    def __init__(self, space: DARTS, shapes: Shapes, cell: CellFactory, auxiliary: bool = False) -> None:
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
