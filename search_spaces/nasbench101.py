"""The space of NAS-Bench-101: cells of up to seven vertices and nine edges, 423,624 of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.encoding import Graphs
from nasengine.errors import ArchitectureError, SettingError
from nasengine.settings import setting, validate
from nasengine.space import Benchmark, Progress, Space
from nasengine.task import Shapes
from search_spaces._nasbench101 import (
    EDGES,
    INPUT,
    MAX_EDGES,
    MAX_VERTICES,
    OPERATIONS,
    OUTPUT,
    Cell,
    quoted,
    read_cell,
)
from search_spaces._nasbench101_cells import load_cells, sample_cell
from search_spaces._nasbench101_costs import Skeleton, check_images, costs, encode_codes
from search_spaces._nasbench101_sequence import (
    LAST,
    CellSequence,
    codes_of,
    edge_label,
    operation_label,
    raw_cell,
    sequence_of,
)
from search_spaces._nasbench101_table import TABLE_COLUMNS, read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from nasengine.benchmark import Results
    from search_spaces._nasbench101_published import Table

_FORM: Final = "111-01-1 conv3x3-bn-relu,maxpool3x3"


@dataclass(frozen=True, kw_only=True)
class NASBench101(Space):
    """The cells of NAS-Bench-101, in the published network.

    The choices are the edges, "edge/0-1" from vertex 0 (the input) to vertex 1, with the options 0 and 1, and the
    operations "op/1" to "op/5" of the vertices in between; vertex 6 is the output. Vertices that are on no way from
    the input to the output are left out, as are the edges at them. A cell has at most 9 edges. Stacks of cells, with a
    pooling that halves the image and twice the channels from one to the next.

    In the cell an operation has the sum of what comes in; the output has the concatenation, for which its channels are
    split among its sources, and any other vertex has as many as the widest of its targets. What comes from the input
    is projected, the rest is cut to fit.

    It has no supernet: the channels of a vertex depend on all edges. Its cells are ranked, not searched by gradients.

    Reference: Ying et al., ICML 2019, arXiv:1902.09635, section 2; channels as in google-research/nasbench.

    Differs from the paper: batch norm has torch's momentum, 0.1.
    """

    name: ClassVar[str] = "nasbench101"
    searchable: ClassVar[bool] = False
    table_columns: ClassVar[tuple[str, ...]] = TABLE_COLUMNS

    channels: int = setting(128, "channels of the first stack", low=1)
    stacks: int = setting(3, "stacks, with twice the channels from one to the next", low=1)
    cells: int = setting(3, "cells a stack", low=1)

    def __post_init__(self) -> None:
        validate(self, "space")

    def choices(self, shapes: Shapes | None = None) -> dict[str, Choice]:
        del shapes
        edges = {label: Choice(label, ("0", "1")) for label in map(edge_label, EDGES)}
        return edges | {label: Choice(label, OPERATIONS) for label in map(operation_label, range(1, LAST))}

    def network(self, shapes: Shapes) -> NoReturn:
        raise SettingError(
            f"A space to search must have a supernet, but {self.name!r} has none: its cells can be ranked and trained, "
            "not searched; choose another --space."
        )

    # Cells as architectures

    def cell(self, architecture: Mapping[str, str]) -> Cell:
        """The pruned cell. Raises ArchitectureError if it is none of the benchmark."""
        return raw_cell(architecture).pruned()

    def architecture(self, cell: Cell) -> Architecture:
        """A cell as an architecture; vertices that are on no way are kept where there are no more than seven."""
        cell = cell if len(cell.matrix) <= MAX_VERTICES else cell.pruned()
        places = [*range(len(cell.matrix) - 1), LAST]
        ends = combinations(range(len(places)), 2)
        edges = {edge_label((places[x], places[y])): "1" for x, y in ends if cell.matrix[x][y]}
        operations = {
            operation_label(vertex): operation for vertex, operation in enumerate(cell.operations[1:-1], start=1)
        }
        choices = self.choices()
        first = {label: choice.options[0] for label, choice in choices.items()}
        return self.canonical(choices, Architecture({**first, **edges, **operations}))

    def unused(self, choices: Mapping[str, Choice], architecture: Mapping[str, str]) -> Collection[str]:
        live = _live([edge for edge in EDGES if architecture[edge_label(edge)] == "1"])
        edges = [edge_label(edge) for edge in EDGES if not live.issuperset(edge)]
        return {*edges, *(operation_label(vertex) for vertex in range(1, LAST) if vertex not in live)}

    def check(self, choices: Mapping[str, Choice], architecture: Architecture) -> None:
        super().check(choices, architecture)
        raw_cell(architecture)

    def derive(self, choices: Mapping[str, Choice], weights: Mapping[str, Tensor]) -> Architecture:
        """The heaviest operations, and the edges that are heavier than their absence.

        Where these connect nothing, the way from input to output with the largest sum of differences joins them; of
        more than 9 the lightest go whose loss leaves a way.
        """
        gains = {edge: float(weights[edge_label(edge)][1] - weights[edge_label(edge)][0]) for edge in EDGES}
        edges = [edge for edge in EDGES if gains[edge] > 0]
        edges = edges if _live(edges) else sorted({*edges, *_heaviest_way(gains)})
        while len(pruned := [edge for edge in edges if _live(edges).issuperset(edge)]) > MAX_EDGES:
            spare = (
                e for e in sorted(pruned, key=gains.__getitem__) if _live([other for other in pruned if other != e])
            )
            lightest = next(spare)
            edges = [edge for edge in pruned if edge != lightest]
        heaviest = {label: choice.options[int(weights[label].argmax())] for label, choice in choices.items()}
        bits = {edge_label(edge): str(int(edge in edges)) for edge in EDGES}
        return self.canonical(choices, Architecture({**heaviest, **bits}))

    def sample(self, choices: Mapping[str, Choice], generator: torch.Generator) -> Architecture:
        """One of all cells, each with the same probability."""
        return self.architecture(sample_cell(generator))

    # Networks

    def build(self, architecture: Architecture, shapes: Shapes) -> nn.Module:
        return Network(self, self.cell(architecture), shapes)

    # Many cells at once

    def everything(self, shapes: Shapes, progress: Progress | None = None) -> CellSequence:
        """All cells, in the order of `Cells`; half a minute the first time, as they are enumerated and kept."""
        del shapes
        return CellSequence(load_cells(progress))

    def encode(self, architectures: Sequence[Architecture], shapes: Shapes) -> Graphs:
        """The published one of the isomorphs of each cell; numbers as `encode_codes` says."""
        check_images(self.name, shapes)
        return encode_codes(codes_of(architectures), self._skeleton, shapes)

    def costs(
        self, architectures: Sequence[Architecture], shapes: Shapes
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Parameters (N,) and multiply-adds (N,) of the published one of the isomorphs of each cell.

        Where the channels of the output are no multiple of the number of its sources, those of the isomorphs differ a
        little, since the first sources have one more.
        """
        check_images(self.name, shapes)
        return costs(codes_of(architectures), self._skeleton, shapes)

    def to_table(self, architectures: Sequence[Architecture], shapes: Shapes) -> pd.DataFrame:
        """Columns hash, matrix (the digits of its rows), operations (with commas) and parameters, as published."""
        check_images(self.name, shapes)
        found = architectures if isinstance(architectures, CellSequence) else sequence_of(codes_of(architectures))
        return write_table(found, costs(found.codes(), self._skeleton, shapes)[0])

    def from_table(self, table: pd.DataFrame) -> Sequence[Architecture]:
        """Cells by `matrix` (or `adjacency`) and `operations`, by `hash`, or by `architecture`.

        Matrices are the digits of their rows or lists; of 7 x 7 those count that `n_vertices` says. Matrix and hash
        must agree, and give the published one of the isomorphs; a text of an architecture is taken as it is.
        """
        return read_table(table, self.read)

    @property
    def _skeleton(self) -> Skeleton:
        return Skeleton(self.channels, self.stacks, self.cells)

    # Other forms

    def graphs(self, architecture: Architecture) -> dict[str, nx.DiGraph[str]]:
        cell = self.cell(architecture)
        names = [INPUT, *map(str, range(1, len(cell.matrix) - 1)), OUTPUT]
        graph: nx.DiGraph[str] = nx.DiGraph()
        for name, operation in zip(names, cell.operations, strict=True):
            graph.add_node(name, operation="" if operation in (INPUT, OUTPUT) else operation)
        ends = combinations(range(len(names)), 2)
        graph.add_edges_from((names[x], names[y]) for x, y in ends if cell.matrix[x][y])
        return {"cell": graph}

    def write(self, architecture: Architecture) -> str:
        """The rows of the matrix above its diagonal, and the operations in between: "111-01-1 op,op"."""
        cell = self.cell(architecture)
        if self.architecture(cell) != architecture:
            cell = raw_cell(architecture)  # its vertices have gaps in between, which the text keeps
        rows = ("".join(map(str, row[place + 1 :])) for place, row in enumerate(cell.matrix[:-1]))
        return " ".join(["-".join(rows), ",".join(cell.operations[1:-1])]).rstrip()

    def read(self, text: str) -> Architecture:
        """What `write` wrote, the text of an architecture, or as published "010001000 input,...,output".

        Raises ArchitectureError.
        """
        if text.lstrip().startswith(("edge/", "op/")):
            architecture = Architecture.parse(text)
            self.check(self.choices(), architecture)
            return architecture
        rows, _, operations = text.strip().partition(" ")
        if operations.startswith(INPUT):
            return self.architecture(read_cell(rows, operations))
        count = rows.count("-") + 2
        if [len(row) for row in rows.split("-")] != list(range(count - 1, 0, -1)) or set(rows) - set("01-"):
            raise ArchitectureError(
                f"A cell must have the form {_FORM!r}, the rows of its matrix above the diagonal and its operations, "
                f"but got {quoted(text)}."
            )
        matrix = [[0] * (place + 1) + list(map(int, row)) for place, row in enumerate(rows.split("-"))]
        inner = [operation for operation in operations.strip().split(",") if operation]
        return self.architecture(Cell([*matrix, [0] * count], [INPUT, *inner, OUTPUT]))

    # What is known

    def benchmark(self, path: Path) -> Benchmark:
        """The means of three trainings in what `nasengine benchmark convert` wrote; the largest budget comes first."""
        table = self.table(path)

        def look_up(architecture: Architecture) -> dict[str, float]:
            cell = self.cell(architecture)
            known: dict[str, float] = {}
            for epochs in sorted(table.epochs, reverse=True):
                final = table.look_up(cell, epochs).final
                form = (
                    "cifar10_{}_accuracy" if epochs == max(table.epochs) else f"cifar10_{{}}_accuracy_{epochs}_epochs"
                )
                known |= {
                    form.format("test"): final.test_accuracy,
                    form.format("validation"): final.validation_accuracy,
                }
            return known

        return look_up

    def table(self, path: Path | str) -> Table:
        """What `nasengine benchmark convert` wrote, to be looked up by cell or hash; counts what that costs."""
        from search_spaces._nasbench101_published import read_table

        return read_table(Path(path))

    def convert_results(self, source: Path, out: Path, progress: Progress | None = None) -> None:
        """See `convert_records`."""
        from search_spaces._nasbench101_conversion import convert_records

        convert_records(source, out, progress)

    def results(self, path: Path) -> Results:
        from search_spaces._nasbench101_results import TableResults

        return TableResults(self, self.table(path))


def _live(edges: Sequence[tuple[int, int]]) -> set[int]:
    """The vertices on ways from the input to the output, none if there is no way. Edges are sorted by their ends."""
    below, above = {0}, {LAST}
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        below |= {target} if source in below else set()
    for source, target in sorted(edges, reverse=True):
        above |= {source} if target in above else set()
    return below & above if LAST in below else set()


def _heaviest_way(gains: Mapping[tuple[int, int], float]) -> list[tuple[int, int]]:
    """The edges of the way from input to output with the largest sum."""
    best: dict[int, tuple[float, list[tuple[int, int]]]] = {0: (0.0, [])}
    for target in range(1, MAX_VERTICES):
        ways = [(best[source][0] + gains[source, target], best[source][1]) for source in range(target)]
        source = max(range(target), key=lambda place: ways[place][0])
        best[target] = ways[source][0], [*ways[source][1], (source, target)]
    return best[LAST][1]


def channels_of(cell: Cell, inputs: int, outputs: int) -> list[int]:
    """Channels of the vertices of a pruned cell, as published: those of the output's sources add up to `outputs`."""
    matrix, last = cell.matrix, len(cell.matrix) - 1
    sources = [vertex for vertex in range(1, last) if matrix[vertex][last]]
    result = [inputs, *[0] * (last - 1), outputs]
    for place, vertex in enumerate(sources):
        result[vertex] = outputs // len(sources) + (place < outputs % len(sources))
    for vertex in reversed(range(1, last)):
        if not matrix[vertex][last]:
            result[vertex] = max(result[target] for target in range(vertex + 1, last) if matrix[vertex][target])
    return result


class CellNetwork(nn.Module):
    """One cell: (batch, inputs, height, width) -> (batch, outputs, height, width)."""

    def __init__(self, cell: Cell, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix, last = cell.matrix, len(cell.matrix) - 1
        self.channels = channels_of(cell, inputs, outputs)
        self.projections = nn.ModuleDict(
            {
                str(target): _convolution(1, inputs, self.channels[target])
                for target in range(1, last + 1)
                if self.matrix[0][target]
            }
        )
        self.operations = nn.ModuleList(
            _operation(kind, self.channels[vertex]) for vertex, kind in enumerate(cell.operations[1:-1], start=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        values, last = [x], len(self.matrix) - 1
        for vertex, operation in enumerate(self.operations, start=1):
            sources = [
                values[source][:, : self.channels[vertex]] for source in range(1, vertex) if self.matrix[source][vertex]
            ]
            values.append(operation(self._sum(x, vertex, sources)))
        joined = [values[source] for source in range(1, last) if self.matrix[source][last]]
        return self._sum(x, last, [torch.cat(joined, 1)] if joined else [])

    def _sum(self, x: Tensor, vertex: int, terms: list[Tensor]) -> Tensor:
        if self.matrix[0][vertex]:
            terms = [*terms, self.projections[str(vertex)](x)]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


class Network(nn.Module):
    """A stem, stacks of cells with max pooling of stride 2 in between, the mean over pixels, a linear layer."""

    def __init__(self, space: NASBench101, cell: Cell, shapes: Shapes) -> None:
        super().__init__()
        check_images(space.name, shapes)
        layers: list[nn.Module] = [_convolution(3, shapes.input[0], space.channels)]
        inputs = space.channels
        for stack in range(space.stacks):
            outputs = space.channels * 2**stack
            layers += [nn.MaxPool2d(2, 2, ceil_mode=True)] if stack else []
            for _ in range(space.cells):
                layers.append(CellNetwork(cell, inputs, outputs))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, shapes.outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return logits


def _convolution(kernel: int, inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-5), nn.ReLU())


def _operation(kind: str, channels: int) -> nn.Module:
    if kind == "maxpool3x3":
        return nn.MaxPool2d(3, 1, 1)
    return _convolution(3 if kind.startswith("conv3x3") else 1, channels, channels)
