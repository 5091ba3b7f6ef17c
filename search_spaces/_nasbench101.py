"""One cell of NAS-Bench-101 as plain data, and its published hash.

A cell is a directed acyclic graph of 2 to 7 vertices and at most 9 edges; the first vertex is the input, the last one
the output, every other one an operation. Cells that differ only in the numbers of their vertices are one cell, and
have one hash.

Reference: Ying et al., ICML 2019, arXiv:1902.09635; pruning and hash as in google-research/nasbench.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasengine.errors import ArchitectureError

OPERATIONS: Final = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
"""In the published order: the hash has their indices."""
INPUT: Final = "input"
OUTPUT: Final = "output"
MAX_VERTICES: Final = 7
MAX_EDGES: Final = 9
EDGES: Final = tuple((source, target) for target in range(MAX_VERTICES) for source in range(target))
"""(from, to) of the edges in the order of their bits; a cell of v vertices has the first v (v - 1) / 2."""

Bits: TypeAlias = NDArray[np.uint32]
Bytes: TypeAlias = NDArray[np.uint8]

_INPUT_LABEL, _OUTPUT_LABEL = -1, -2
_LONGEST = 60


@dataclass(frozen=True)
class Cell:
    """`matrix[x][y]` is 1 where an edge leads from vertex x to vertex y; `operations` are those of the vertices.

    Any sequences are taken and kept as tuples, so that equal cells are equal keys. Vertices that are on no way from
    the input to the output are allowed, and do not count for the limits.

    Raises:
        ArchitectureError: it is no cell of NAS-Bench-101.
    """

    matrix: Sequence[Sequence[int]]
    operations: Sequence[str]

    def __post_init__(self) -> None:
        matrix, operations = _checked_matrix(self.matrix), _checked_operations(self.operations)
        if len(matrix) != len(operations):
            raise ArchitectureError(
                f"A cell must have one operation a vertex, but has {len(operations)} for {len(matrix)} vertices; name "
                f"those of all vertices, {INPUT!r} first and {OUTPUT!r} last."
            )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "operations", operations)
        _check_limits(self)

    def pruned(self) -> Cell:
        """The cell without the vertices that are on no way from the input to the output; the order is kept."""
        kept = _live(self.matrix)
        return self if len(kept) == len(self.matrix) else self._chosen(kept)

    def renumbered(self, order: Sequence[int]) -> Cell:
        """The same cell with other numbers: its vertex i is vertex `order[i]` of this one.

        Raises:
            ArchitectureError: `order` does not have all vertices once, or an edge would lead backwards.
        """
        if sorted(order) != list(range(len(self.matrix))):
            raise ArchitectureError(
                f"An order of vertices must have each of 0 to {len(self.matrix) - 1} once, but is {quoted(order)}; "
                "give a permutation."
            )
        return self._chosen(order)

    @cached_property
    def module_hash(self) -> str:
        """The 32 hexadecimal digits under which the published table has the cell; isomorphic cells have the same."""
        cell = self.pruned()
        inner = [OPERATIONS.index(operation) for operation in cell.operations[1:-1]]
        return hash_module(cell.matrix, [_INPUT_LABEL, *inner, _OUTPUT_LABEL])

    def _chosen(self, vertices: Sequence[int]) -> Cell:
        matrix = [[self.matrix[source][target] for target in vertices] for source in vertices]
        return Cell(matrix, [self.operations[vertex] for vertex in vertices])


def read_cell(matrix: str, operations: str) -> Cell:
    """The cell of the published texts: "010001000", row by row, and "input,...,output". Raises ArchitectureError."""
    names = operations.split(",")
    count = len(names)
    if len(matrix) != count**2 or set(matrix) - set("01"):
        raise ArchitectureError(
            f"The matrix of a cell must be {count} rows of {count} digits 0 and 1 for its {count} operations, one row "
            f"after the other, but is {quoted(matrix)}."
        )
    return Cell([[int(entry) for entry in matrix[count * x : count * (x + 1)]] for x in range(count)], names)


def hash_module(matrix: Sequence[Sequence[int]], labels: Sequence[int]) -> str:
    """The published hash of a directed graph whose vertices have the labels (V,), in its plain form.

    Every vertex starts with the MD5 of its degrees and its label; V times, each takes that of the sorted hashes of its
    sources, of its targets, and its own; the hash of the graph is that of the sorted hashes. Nothing is pruned. A cell
    has the label -1 for its input, the index in OPERATIONS for an operation, -2 for its output.
    """
    vertices = range(len(matrix))
    sources = [[source for source in vertices if matrix[source][vertex]] for vertex in vertices]
    targets = [[target for target in vertices if matrix[vertex][target]] for vertex in vertices]
    hashes = [_md5(str((len(targets[v]), len(sources[v]), int(labels[v])))) for v in vertices]
    for _ in vertices:
        hashes = ["|".join((_joined(hashes, sources[v]), _joined(hashes, targets[v]), hashes[v])) for v in vertices]
        hashes = [_md5(text) for text in hashes]
    return _md5(str(sorted(hashes)))


def _joined(hashes: Sequence[str], vertices: Sequence[int]) -> str:
    return "".join(sorted(hashes[vertex] for vertex in vertices))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _checked_matrix(matrix: object) -> tuple[tuple[int, ...], ...]:
    try:
        rows: list[list[Any]] = [list(row) for row in matrix]  # type: ignore[attr-defined]
        square = all(len(row) == len(rows) for row in rows)
        plain = square and all(entry in (0, 1) for row in rows for entry in row)
    except (TypeError, ValueError):  # the latter: an entry is an array
        plain = False
    if not plain:
        raise ArchitectureError(
            f"The matrix of a cell must be square with the entries 0 and 1, but is {quoted(matrix)}; give one row and "
            "one column a vertex."
        )
    backward = [(x, y) for x, row in enumerate(rows) for y, entry in enumerate(row) if entry and x >= y]
    if backward:
        raise ArchitectureError(
            f"An edge of a cell must lead to a later vertex, but one leads from {backward[0][0]} to {backward[0][1]}; "
            "number the vertices so that the matrix is strictly upper triangular."
        )
    return tuple(tuple(int(entry) for entry in row) for row in rows)


def _checked_operations(operations: Sequence[str]) -> tuple[str, ...]:
    first, *inner, last = operations if len(operations) >= 2 else ("", "")
    if (first, last) != (INPUT, OUTPUT):
        raise ArchitectureError(
            f"The operations of a cell must begin with {INPUT!r} and end with {OUTPUT!r}, but are "
            f"{quoted(operations)}; name those of all vertices in their order."
        )
    unknown = [operation for operation in inner if operation not in OPERATIONS]
    if unknown:
        raise ArchitectureError(
            f"The operations between {INPUT!r} and {OUTPUT!r} must be among {', '.join(OPERATIONS)}, but one is "
            f"{quoted(unknown[0])}; use a published name."
        )
    return tuple(operations)


def _check_limits(cell: Cell) -> None:
    kept = _live(cell.matrix)
    if not kept:
        raise ArchitectureError(
            f"The output of a cell must be connected to its input, but no way leads from vertex 0 to vertex "
            f"{len(cell.matrix) - 1}; add an edge."
        )
    edges = sum(cell.matrix[source][target] for source in kept for target in kept)
    if len(kept) > MAX_VERTICES or edges > MAX_EDGES:
        raise ArchitectureError(
            f"A cell must have at most {MAX_VERTICES} vertices and {MAX_EDGES} edges on its ways from input to output, "
            f"but has {len(kept)} and {edges}; leave some out."
        )


def _live(matrix: Sequence[Sequence[int]]) -> list[int]:
    """The vertices on ways from the first to the last one, none if there is no way."""
    count = len(matrix)
    below, above = {0}, {count - 1}
    for target in range(count):
        below |= {target} if any(matrix[source][target] for source in below) else set()
    for source in reversed(range(count)):
        above |= {source} if any(matrix[source][target] for target in above) else set()
    return sorted(below & above)


def edges_of(vertices: int) -> tuple[tuple[int, int], ...]:
    """(from, to) of the bits of a cell of so many vertices."""
    return EDGES[: vertices * (vertices - 1) // 2]


def quoted(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


# The hash of many graphs at once


def hash_modules(edges: Bits, operations: NDArray[np.int8]) -> Bytes:
    """`hash_module` of N cells of one number V of vertices: edges (N,), operations (N, V - 2), hashes (N, 16).

    All rounds work on arrays (N V, 16) of hashes; nothing is pruned.
    """
    vertices = operations.shape[1] + 2
    adjacency = np.zeros((len(edges), vertices, vertices), bool)
    for bit, (source, target) in enumerate(edges_of(vertices)):
        adjacency[:, source, target] = edges >> bit & 1
    labels = np.full((len(edges), vertices), _INPUT_LABEL)
    labels[:, 1:-1], labels[:, -1] = operations, _OUTPUT_LABEL
    hashes = _first_hashes()[adjacency.sum(axis=2), adjacency.sum(axis=1), labels].reshape(-1, 16)
    groups = list(_groups(adjacency))
    for _ in range(vertices):
        order = _sorted_within(hashes, vertices)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        digits, hashes = _hexadecimal(hashes[order]), np.empty_like(hashes)
        for own, sources, targets in groups:
            words = [digits[np.sort(place[sources], axis=1)], digits[np.sort(place[targets], axis=1)]]
            bar = np.full((len(own), 1), ord("|"), np.uint8)
            parts = [part for word in words for part in (word.reshape(len(own), -1), bar)]
            hashes[own] = md5_rows(np.concatenate([*parts, digits[place[own]]], axis=1))
    return md5_rows(_lists(_hexadecimal(hashes[_sorted_within(hashes, vertices)]).reshape(-1, vertices, 32)))


def md5_rows(messages: Bytes) -> Bytes:
    """The MD5 (N, 16) of the rows of messages (N, length)."""
    data, length = messages.tobytes(), messages.shape[1]
    rows = (data[start : start + length] for start in range(0, len(data), length))
    empty, digests = hashlib.md5(usedforsecurity=False), []  # a copy of which costs half of a new one
    for row in rows:
        own = empty.copy()
        own.update(row)
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def _first_hashes() -> Bytes:
    """(V, V, labels, 16): the MD5 of (out-degree, in-degree, label); the labels -2 and -1 come last."""
    degrees, labels = range(MAX_VERTICES), (*range(len(OPERATIONS)), _OUTPUT_LABEL, _INPUT_LABEL)
    texts = (str(triple) for triple in product(degrees, degrees, labels))
    digests = np.frombuffer(bytes.fromhex("".join(map(_md5, texts))), np.uint8)
    return digests.reshape(MAX_VERTICES, MAX_VERTICES, len(labels), 16)


def _groups(adjacency: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
    """The vertices of all graphs (N, V, V) by their degrees, for messages of one length.

    Each group has the rows (n,) of n vertices among N V, of their sources (n, in-degree) and targets (n, out-degree).
    """
    count = adjacency.shape[1]
    into, out = adjacency.transpose(0, 2, 1).reshape(-1, count), adjacency.reshape(-1, count)
    kinds = MAX_VERTICES * into.sum(axis=1) + out.sum(axis=1)
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        first = (own - own % count)[:, None]
        yield own, *(first + np.nonzero(side[own])[1].reshape(len(own), -1) for side in (into, out))


def _sorted_within(hashes: Bytes, vertices: int) -> NDArray[np.intp]:
    """The rows (N V,) such that the hashes (N V, 16) of every graph ascend; bytes sort as their digits do."""
    halves = hashes.view(">u8").astype(np.uint64).reshape(-1, vertices, 2)
    order = np.lexsort((halves[..., 1], halves[..., 0]))
    return (order + vertices * np.arange(len(order))[:, None]).reshape(-1)


def _hexadecimal(hashes: Bytes) -> Bytes:
    """The 32 digits (N, 32) of hashes (N, 16)."""
    digits = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
    return digits[hashes].view(np.uint8)


def _lists(digits: Bytes) -> Bytes:
    """The text of lists, "['...', '...']", of digits (N, V, 32)."""
    count, vertices = digits.shape[:2]
    quote, comma = np.full((count, vertices, 1), ord("'"), np.uint8), np.empty((count, vertices, 2), np.uint8)
    comma[:] = list(b", ")
    entries = np.concatenate([quote, digits, quote, comma], axis=2).reshape(count, -1)
    opening, closing = (np.full((count, 1), ord(bracket), np.uint8) for bracket in "[]")
    return np.concatenate([opening, entries[:, :-2], closing], axis=1)
