"""The DARTS space: a normal and a reduction cell, stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import networkx as nx
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.encoding import Graphs, encode_cells
from nasengine.errors import ArchitectureError, SettingError
from nasengine.operations import OPERATIONS
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.task import Shapes
from search_spaces._darts_network import BlueprintCell, DerivedCell, Network, SearchCell
from search_spaces._genotype import Genotype, read_genotype, write_genotype

KINDS = ("normal", "reduce")


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

    def cheapest(self, choices: Mapping[str, Choice]) -> Architecture:
        """That of poolings alone, which cost nothing."""
        return self.smallest(choices)

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
