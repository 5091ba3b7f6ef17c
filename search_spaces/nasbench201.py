"""The space of NAS-Bench-201: one cell of six edges, whose accuracies are all known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import networkx as nx
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.encoding import Graphs, encode_cells
from nasengine.errors import ArchitectureError, DataError
from nasengine.operations import ReluConvNorm, states_of
from nasengine.settings import setting, validate
from nasengine.space import Benchmark, Space
from nasengine.supernet import MixedOp, Shared, Zero
from nasengine.task import Shapes

NODES: Final = 4
EDGES: Final = tuple((source, node) for node in range(1, NODES) for source in range(node))
"""(from, to) of all edges in the published order."""

_FORM: Final = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
_TEXTS: Final = "architecture"
_FIRST: Final = "cifar10_test_accuracy"


def _convolution(kernel: int, inputs: int, outputs: int, stride: int, affine: bool, relu: nn.Module) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    kind = ReluConvNorm if kernel == 1 else nn.Sequential
    return kind(relu, conv, nn.BatchNorm2d(outputs, affine=affine))


OPERATIONS: Final[Mapping[str, Callable[[int, bool, nn.Module], nn.Module]]] = {
    "none": lambda channels, affine, relu: Zero(),
    "skip_connect": lambda channels, affine, relu: nn.Identity(),
    "nor_conv_1x1": lambda channels, affine, relu: _convolution(1, channels, channels, 1, affine, relu),
    "nor_conv_3x3": lambda channels, affine, relu: _convolution(3, channels, channels, 1, affine, relu),
    "avg_pool_3x3": lambda channels, affine, relu: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}
"""By published name and in published order: (channels, affine, leading ReLU) -> module."""


@dataclass(frozen=True, kw_only=True)
class NASBench201(Space):
    """The cell of NAS-Bench-201: 4 nodes, 5 operations on all 6 edges; its 15,625 accuracies are published.

    The choices are the edges, "cell/0-1" from node 0 to node 1, and are the same in all cells. Three stages of cells
    with once, twice and four times the channels; a residual block of stride 2 before the second and the third. Its
    `benchmark` reads a table with the column "architecture" in the published text form and columns of percentages
    whose names contain "accuracy".

    Reference: Dong, Yang, ICLR 2020, arXiv:2001.00326, section 2.1.

    Differs from the paper: an odd height or width is halved upwards in both branches of a residual block, whose
    published pooling fits even ones only. In the search no batch norm of a cell has learned scales, as with DARTS
    (arXiv:1806.09055, A.1.1).
    """

    name: ClassVar[str] = "nasbench201"

    channels: int = setting(16, "channels of the first stage", low=1)
    cells: int = setting(5, "cells a stage", low=1)

    def __post_init__(self) -> None:
        validate(self, "space")

    def choices(self, shapes: Shapes | None = None) -> dict[str, Choice]:
        return {label: Choice(label, tuple(OPERATIONS)) for label in map(_label, EDGES)}

    def cheapest(self, choices: Mapping[str, Choice]) -> Architecture:
        """That of the operation "none" alone, which cost nothing."""
        return self.smallest(choices)

    def network(self, shapes: Shapes) -> nn.Module:
        return Network(self, shapes, search_cell)

    def blueprint(self, shapes: Shapes) -> nn.Module:
        return Network(self, shapes, lambda channels: search_cell(channels, affine=True))

    def final(self) -> NASBench201:
        """At least 16 channels and 5 cells a stage, the published network."""
        return dataclasses.replace(self, channels=max(self.channels, 16), cells=max(self.cells, 5))

    def build(self, architecture: Architecture, shapes: Shapes) -> nn.Module:
        return Network(self, shapes, lambda channels: derived_cell(architecture, channels))

    def graphs(self, architecture: Architecture) -> dict[str, nx.DiGraph[str]]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(map(str, range(NODES)))
        for source, node in EDGES:
            operation = architecture[_label((source, node))]
            if operation != "none":
                graph.add_edge(str(source), str(node), operation=operation)
        empty = [node for node in graph if node != "0" and not graph.pred[node]]
        nx.set_node_attributes(graph, dict.fromkeys(empty, "zero"), "operation")
        return {"cell": graph}

    def encode(self, architectures: Sequence[Architecture], shapes: Shapes) -> Graphs:
        del shapes
        operations = [name for name in OPERATIONS if name != "none"]
        return encode_cells([self.graphs(a) for a in architectures], operations, identities=("skip_connect",))

    def write(self, architecture: Architecture) -> str:
        nodes = (
            "".join(f"|{architecture[_label((source, node))]}~{source}" for source in range(node))
            for node in range(1, NODES)
        )
        return "+".join(f"{node}|" for node in nodes)

    def read(self, text: str) -> Architecture:
        """The text form of the benchmark, or the text of an architecture."""
        if text.lstrip().startswith("cell/"):
            architecture = Architecture.parse(text)
            self.check(self.choices(), architecture)
            return architecture
        parts = text.strip().split("+")
        if len(parts) != NODES - 1:
            raise ArchitectureError(
                f"An architecture must have the form {_FORM}, three nodes joined by '+', but the text has {len(parts)}."
            )
        options: dict[str, str] = {}
        for node, part in enumerate(parts, start=1):
            closed = len(part) > 1 and part[0] == part[-1] == "|"
            pairs = [word.rpartition("~") for word in part[1:-1].split("|")] if closed else []
            if [source for _, _, source in pairs] != [str(source) for source in range(node)]:
                raise ArchitectureError(
                    f"An architecture must have the form {_FORM}, but its node {node} is {_quoted(part)}."
                )
            options |= {_label((int(source), node)): operation for operation, _, source in pairs}
        architecture = Architecture(options)
        self.check(self.choices(), architecture)
        return architecture

    def indicators(self, architecture: Architecture) -> dict[str, float]:
        return {"skips": _skips(architecture)}

    def warning(self, architecture: Architecture) -> str:
        if not nx.has_path(self.graphs(architecture)["cell"], "0", str(NODES - 1)):
            return "No path leads through the cell: its output is zero whatever comes in."
        skips = _skips(architecture)
        if 2 * skips <= len(EDGES):
            return ""
        return f"{skips} of the {len(EDGES)} edges of the cell are skip connections: the search may be collapsing."

    def benchmark(self, path: Path) -> Benchmark:
        """The accuracies of a table (parquet or CSV) as shares 0..1. Raises DataError."""
        columns = _read_columns(path)
        texts, shares = _texts(columns, path), _shares(columns, path)
        rows: dict[Architecture, int] = {}
        for row, text in enumerate(texts):
            architecture = self._row(text, row, path)
            if rows.setdefault(architecture, row) != row:
                raise DataError(
                    f"{path} must have every architecture once, but {text} is in rows {rows[architecture]} and {row}."
                )

        def look_up(architecture: Architecture) -> dict[str, float]:
            if architecture not in rows:
                raise DataError(
                    f"{path} must have every architecture that is found, but {self.write(architecture)} is not among "
                    f"its {len(rows)}; give the whole table, or leave out --benchmark."
                )
            return {name: values[rows[architecture]] for name, values in shares.items()}

        return look_up

    def _row(self, text: str, row: int, path: Path) -> Architecture:
        try:
            return self.read(text)
        except ArchitectureError:
            raise DataError(
                f"The column {_TEXTS} of {path} must have the form {_FORM}, each op one of {', '.join(OPERATIONS)}, "
                f"but row {row} has {_quoted(text)}."
            ) from None


def _label(edge: tuple[int, int]) -> str:
    return f"cell/{edge[0]}-{edge[1]}"


def _skips(architecture: Architecture) -> int:
    return sum(operation == "skip_connect" for operation in architecture.values())


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


# Networks


class Cell(nn.Module):
    """A module for every edge; a node is the sum of its edges, the last one the output."""

    def __init__(self, edges: Mapping[tuple[int, int], nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({f"{source}-{node}": module for (source, node), module in edges.items()})

    def forward(self, x: Tensor) -> Tensor:
        return states_of([x], self.edges, NODES - 1)[-1]


def search_cell(channels: int, affine: bool = False) -> Cell:
    """All operations on all edges; the ReLU and the pooling of the edges that leave a node are computed once."""
    relus = [Shared(nn.ReLU()) for _ in range(NODES - 1)]
    pools = [Shared(OPERATIONS["avg_pool_3x3"](channels, affine, relu)) for relu in relus]

    def mixed(source: int, node: int) -> MixedOp:
        own = {name: make(channels, affine, relus[source]) for name, make in OPERATIONS.items() if "pool" not in name}
        return MixedOp(_label((source, node)), {**own, "avg_pool_3x3": pools[source]})

    return Cell({edge: mixed(*edge) for edge in EDGES})


def derived_cell(architecture: Architecture, channels: int) -> Cell:
    """The operations of one architecture, with learned scales."""
    return Cell({edge: OPERATIONS[architecture[_label(edge)]](channels, True, nn.ReLU()) for edge in EDGES})


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, added to a pooled and projected copy of the input.

    Takes (batch, inputs, height, width), gives (batch, outputs, height / 2, width / 2), rounded up.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        first = _convolution(3, inputs, outputs, 2, True, nn.ReLU())
        self.layers = nn.Sequential(first, _convolution(3, outputs, outputs, 1, True, nn.ReLU()))
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.shortcut(x) + self.layers(x)
        return total


class Network(nn.Module):
    """Stem, three stages of cells with residual blocks between, batch norm, global pooling, a linear classifier."""

    def __init__(self, space: NASBench201, shapes: Shapes, cell: Callable[[int], Cell]) -> None:
        super().__init__()
        if len(shapes.input) != 3:
            raise DataError(
                f"Space 'nasbench201' needs images (channels, height, width), but one input has shape {shapes.input}; "
                "take other data or another space."
            )
        width = space.channels
        stem = nn.Conv2d(shapes.input[0], width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width))
        self.stages = nn.Sequential(
            *(cell(width) for _ in range(space.cells)),
            ResidualBlock(width, 2 * width),
            *(cell(2 * width) for _ in range(space.cells)),
            ResidualBlock(2 * width, 4 * width),
            *(cell(4 * width) for _ in range(space.cells)),
        )
        self.last = nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU())
        self.classifier = nn.Linear(4 * width, shapes.outputs)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.last(self.stages(self.stem(x)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


# The table


Columns = Mapping[str, list[object]]


def _read_columns(path: Path) -> Columns:
    """Architectures and accuracies of a file, whose first bytes say whether it is parquet; any other is read as CSV."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
            file.seek(0)
            table = parquet.read_table(file) if is_parquet else csv.read_csv(file)
        names: list[str] = table.column_names
        _check_names(names, path)
        return {name: table[name].to_pylist() for name in names if name == _TEXTS or _is_accuracy(name)}
    except (pa.ArrowException, UnicodeDecodeError):
        raise DataError(f"A benchmark table must be a whole parquet or CSV file, but {path} is not one.") from None
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise DataError(f"A benchmark table must be a readable file, but {path} is not: {reason}.") from None


def _is_accuracy(name: str) -> bool:
    return "accuracy" in name


def _check_names(names: list[str], path: Path) -> None:
    if _TEXTS not in names or not any(map(_is_accuracy, names)) or len(set(names)) < len(names):
        raise DataError(
            f"{path} must have a column {_TEXTS} and columns of accuracies such as {_FIRST}, each once, but has "
            f"{_quoted(', '.join(names))}."
        )


def _texts(columns: Columns, path: Path) -> list[str]:
    """The architectures of the rows."""
    texts = [text for text in columns[_TEXTS] if isinstance(text, str)]
    if not texts or len(texts) < len(columns[_TEXTS]):
        raise DataError(f"The column {_TEXTS} of {path} must have a text in every row, but has not.")
    return texts


def _shares(columns: Columns, path: Path) -> dict[str, list[float]]:
    """The accuracies 0..1 of the rows by column; the test accuracy on CIFAR-10 comes first."""
    shares = {}
    for name in sorted(filter(_is_accuracy, columns), key=lambda name: name != _FIRST):
        percent = [value for value in columns[name] if isinstance(value, (int, float)) and 0.0 <= value <= 100.0]
        if len(percent) < len(columns[name]):
            raise DataError(f"The column {name} of {path} must be percentages from 0 to 100, but is not everywhere.")
        shares[name] = [value / 100.0 for value in percent]
    return shares
