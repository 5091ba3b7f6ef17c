"""Cells of NAS-Bench-101 as arrays: the first of their isomorphs, and sequences of architectures that are made late.

A cell is brought to the form that the table of all cells has by the least of its codes under all orders of its inner
vertices, not by its hash: that needs no table, is exact, and is fast for one cell as for all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any, ClassVar, Final, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError
from search_spaces._nasbench101 import (
    EDGES,
    INPUT,
    MAX_EDGES,
    MAX_VERTICES,
    OPERATIONS,
    OUTPUT,
    Bits,
    Bytes,
    Cell,
    edges_of,
    hash_modules,
)
from search_spaces._nasbench101_cells import Cells, load_cells

LAST: Final = MAX_VERTICES - 1


def edge_label(edge: tuple[int, int]) -> str:
    return f"edge/{edge[0]}-{edge[1]}"


def operation_label(vertex: int) -> str:
    return f"op/{vertex}"


EDGE_LABELS: Final = tuple(map(edge_label, EDGES))
OPERATION_LABELS: Final = tuple(map(operation_label, range(1, LAST)))
FIRST: Final = dict.fromkeys(EDGE_LABELS, "0") | dict.fromkeys(OPERATION_LABELS, OPERATIONS[0])
"""The first option of every choice."""

Rows: TypeAlias = NDArray[np.int64]

_ROWS = 16384  # at once: 16 MB with all orders of five vertices
_MANY = 100_000  # from here on the hashes of all cells cost less than those of the ones that are asked for
_BACKWARD = 2.0**40  # above every code


@dataclass(frozen=True, eq=False)
class Codes:
    """N cells as arrays, in the form of `Cells` but with any numbers of their vertices.

    Attributes:
        vertices: (N,), 2 to 7.
        edges: (N,), bit x + y (y - 1) / 2 is set where an edge leads from x to y.
        operations: (N, 5), indices in OPERATIONS of the inner vertices, then -1.
    """

    vertices: Bytes
    edges: Bits
    operations: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.vertices)

    def take(self, rows: slice | NDArray[Any]) -> Codes:
        return Codes(self.vertices[rows], self.edges[rows], self.operations[rows])

    def keys(self) -> Rows:
        """(N,): one number a form, in the order of `Cells`."""
        digits = 4 ** np.arange(self.operations.shape[1])[::-1]
        inner: Rows = (self.operations.astype(np.int64) + 1) @ digits
        return (self.vertices.astype(np.int64) << 31) + (self.edges.astype(np.int64) << 10) + inner

    def adjacency(self) -> NDArray[np.bool_]:
        """(N, 7, 7): an edge from x to y."""
        result = np.zeros((len(self), MAX_VERTICES, MAX_VERTICES), bool)
        for bit, (source, target) in enumerate(EDGES):
            result[:, source, target] = self.edges >> bit & 1
        return result


class CellSequence(Sequence[Architecture]):
    """Cells as architectures that are made when they are asked for, so that all 423,624 take some megabytes.

    An index gives an architecture; a slice, an array of indices or an array of truths gives another sequence of the
    same table. Sequences are equal if they have the same cells in the same order.

    Attributes:
        cells: the table.
        rows: (N,) int64, where the cells are in the table; read-only.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, cells: Cells, rows: NDArray[np.integer[Any]] | None = None) -> None:
        self.cells = cells
        self.rows: Rows = np.arange(len(cells)) if rows is None else np.array(rows, np.int64)
        if self.rows.size and not 0 <= self.rows.min() <= self.rows.max() < len(cells):
            raise IndexError(f"a row is not among those of {len(cells):,} cells")
        self.rows.flags.writeable = False

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Architecture: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> CellSequence: ...
    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> Architecture | CellSequence:
        if isinstance(index, slice):
            return CellSequence(self.cells, self.rows[index])
        if isinstance(index, Sequence) or np.ndim(index):
            chosen = np.asarray(index) if len(cast(Sequence[int], index)) else np.zeros(0, np.int64)
            return CellSequence(self.cells, self.rows[chosen])
        return self._architecture(int(self.rows[operator.index(cast(int, index))]))

    def __iter__(self) -> Iterator[Architecture]:
        return map(self._architecture, self.rows.tolist())

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Architecture):
            return False
        try:
            key = codes_of([value]).keys()
        except ArchitectureError:
            return False
        rows = np.flatnonzero(self.codes().keys() == key)
        return len(rows) > 0 and self[int(rows[0])] == value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CellSequence):
            return NotImplemented
        if self.cells is other.cells:
            return np.array_equal(self.rows, other.rows)
        return np.array_equal(self.codes().keys(), other.codes().keys())

    def __repr__(self) -> str:
        return f"<CellSequence of {len(self):,} among {len(self.cells):,} cells>"

    def codes(self) -> Codes:
        return Codes(self.cells.vertices, self.cells.edges, self.cells.operations).take(self.rows)

    def hashes(self) -> list[str]:
        """The published hashes."""
        digits = self.cells.hashes[self.rows].tobytes().hex()
        return [digits[start : start + 32] for start in range(0, len(digits), 32)]

    def _architecture(self, row: int) -> Architecture:
        vertices, edges = int(self.cells.vertices[row]), int(self.cells.edges[row])
        present = (label for bit, label in enumerate(_labels(vertices)) if edges >> bit & 1)
        kinds = self.cells.operations[row, : vertices - 2].tolist()
        inner = zip(OPERATION_LABELS, (OPERATIONS[kind] for kind in kinds), strict=False)
        return Architecture({**FIRST, **dict.fromkeys(present, "1"), **dict(inner)})


@cache
def _labels(vertices: int) -> tuple[str, ...]:
    """Of the edges of a cell of so many vertices, whose output is the last vertex of all."""
    places = [*range(vertices - 1), LAST]
    return tuple(edge_label((places[source], places[target])) for source, target in edges_of(vertices))


def raw_cell(architecture: Mapping[str, str]) -> Cell:
    """The cell of seven vertices, dead ones included. Raises ArchitectureError if it is none of the benchmark."""
    missing = [label for label in FIRST if label not in architecture]
    if missing:
        raise ArchitectureError(f"The architecture must decide {missing[0]!r}, but names only {list(architecture)}.")
    matrix: list[list[Any]] = [[0] * MAX_VERTICES for _ in range(MAX_VERTICES)]
    for (source, target), label in zip(EDGES, EDGE_LABELS, strict=True):
        matrix[source][target] = {"0": 0, "1": 1}.get(architecture[label], architecture[label])
    return Cell(matrix, [INPUT, *(architecture[label] for label in OPERATION_LABELS), OUTPUT])


def codes_of(architectures: Sequence[Architecture]) -> Codes:
    """The first of the isomorphs of each. Raises ArchitectureError for what is no cell of the benchmark."""
    if isinstance(architectures, CellSequence):
        return architectures.codes()
    index = {operation: place for place, operation in enumerate(OPERATIONS)}
    try:
        texts = ["".join([each[label] for label in EDGE_LABELS]) for each in architectures]
        inner = [[index[each[label]] for label in OPERATION_LABELS] for each in architectures]
    except KeyError:
        texts = [""]
    if any(len(text) != len(EDGES) or text.strip("01") for text in texts):
        _refuse(architectures)
    if not texts:
        return Codes(np.zeros(0, np.uint8), np.zeros(0, np.uint32), np.zeros((0, LAST - 1), np.int8))
    edges = np.array([int(text[::-1], 2) for text in texts], np.uint32)
    codes = pruned(Codes(np.full(len(edges), MAX_VERTICES, np.uint8), edges, np.array(inner, np.int8)))
    if not allowed(codes).all():
        _refuse(architectures)
    return canonical(codes)


def _refuse(architectures: Sequence[Architecture]) -> None:
    for architecture in architectures:
        raw_cell(architecture)


def sequence_of(codes: Codes) -> CellSequence:
    """Cells, each the first of its isomorphs, as a sequence with their hashes."""
    keys = codes.keys()
    unique, first, rows = np.unique(keys, return_index=True, return_inverse=True)
    if len(unique) > _MANY:
        cells = load_cells()
        every = Codes(cells.vertices, cells.edges, cells.operations).keys()
        return CellSequence(cells, np.searchsorted(every, keys))
    chosen = codes.take(first)
    return CellSequence(Cells(chosen.vertices, chosen.edges, chosen.operations, _hashes(chosen)), rows.reshape(-1))


def _hashes(codes: Codes) -> Bytes:
    result = np.zeros((len(codes), 16), np.uint8)
    for rows, part in _parts(codes):
        result[rows] = hash_modules(part.edges, part.operations)
    return result


def _parts(codes: Codes) -> Iterator[tuple[NDArray[np.intp], Codes]]:
    """Some rows of one number of vertices at a time; their operations have no padding."""
    for vertices in np.unique(codes.vertices).tolist():
        rows = np.flatnonzero(codes.vertices == vertices)
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            yield some, Codes(codes.vertices[some], codes.edges[some], codes.operations[some, : vertices - 2])


# Forms of a cell


def pruned(codes: Codes) -> Codes:
    """Without the vertices that are on no way from the input to the output; 0 vertices where there is no way."""
    present = [(codes.edges >> bit & 1).astype(bool) for bit in range(len(EDGES))]
    edges = dict(zip(EDGES, present, strict=True))
    below, above = (np.zeros((len(codes), MAX_VERTICES), bool) for _ in range(2))
    below[:, 0], above[np.arange(len(codes)), codes.vertices - 1] = True, True
    for source, target in EDGES:
        below[:, target] |= edges[source, target] & below[:, source]
    for source, target in sorted(EDGES, reverse=True):
        above[:, source] |= edges[source, target] & above[:, target]
    live = below & above
    place = np.cumsum(live, axis=1) - 1
    moved = np.zeros(len(codes), np.int64)
    for source, target in EDGES:
        bit = place[:, source] + place[:, target] * (place[:, target] - 1) // 2
        moved |= np.where(edges[source, target] & live[:, source] & live[:, target], 1 << np.maximum(bit, 0), 0)
    operations = np.full((len(codes), LAST - 1), -1, np.int8)
    for vertex in range(1, LAST):
        rows = np.flatnonzero(live[:, vertex])
        operations[rows, place[rows, vertex] - 1] = codes.operations[rows, vertex - 1]
    return Codes(live.sum(axis=1).astype(np.uint8), moved.astype(np.uint32), operations)


def allowed(codes: Codes) -> NDArray[np.bool_]:
    """(N,): whether a pruned cell is one of the benchmark."""
    count = np.zeros(len(codes), np.uint8)
    for bit in range(len(EDGES)):
        count += (codes.edges >> bit & 1).astype(np.uint8)
    return (codes.vertices > 0) & (count <= MAX_EDGES)


def canonical(codes: Codes) -> Codes:
    """The first of the isomorphs of pruned cells, as `Cells` has them: the least edges, then operations."""
    edges, operations = codes.edges.copy(), codes.operations.copy()
    for rows, part in _parts(codes):
        inner = part.operations.shape[1]
        bits = part.edges[:, None] >> np.arange(len(edges_of(inner + 2)), dtype=np.uint32) & np.uint32(1)
        least = (np.concatenate([bits, part.operations], axis=1) @ _orders(inner)).min(axis=1).astype(np.int64)
        edges[rows] = least // len(OPERATIONS) ** inner
        for vertex in range(inner):
            operations[rows, vertex] = least // len(OPERATIONS) ** (inner - 1 - vertex) % len(OPERATIONS)
    return Codes(codes.vertices, edges, operations)


@cache
def _orders(inner: int) -> NDArray[np.float64]:
    """(edges + operations, orders): what each adds to the code of a cell whose inner vertices have another order.

    The code is the edges as a number, then the operations as digits: whole numbers that float64 holds exactly. One
    that leads backwards adds more than any code.
    """
    base = len(OPERATIONS)
    columns = []
    for order in permutations(range(inner)):
        number = (0, *(vertex + 1 for vertex in order), inner + 1)
        ends = [(number[source], number[target]) for source, target in edges_of(inner + 2)]
        edges = [2.0 ** EDGES.index(pair) * base**inner if pair in EDGES else _BACKWARD for pair in ends]
        columns.append([*edges, *(float(base ** (inner - 1 - place)) for place in order)])
    return np.array(columns).T
