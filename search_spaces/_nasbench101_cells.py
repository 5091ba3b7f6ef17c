"""All 423,624 cells of NAS-Bench-101: enumerated from nothing, and kept in a file of the user's cache.

Reference: Ying et al., ICML 2019, arXiv:1902.09635; order and representatives as in google-research/nasbench.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import permutations, product
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

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
    quoted,
)

Progress: TypeAlias = Callable[[int, int], object]
"""Is called with (cells done, cells in all)."""

_VERSION = 1  # a new one whenever the arrays of Cells change
_BATCH = 32768


@dataclass(frozen=True, eq=False)
class Cells:
    """Pruned cells, no two of them isomorphic, as read-only arrays; N rows.

    Each is the first of its isomorphs, and so the one that is published: by the number of vertices, then `edges` as a
    number, then the operations as digits.
    """

    vertices: Bytes
    """(N,): number of vertices, input and output included."""
    edges: Bits
    """(N,): bit x + y (y - 1) / 2 is set where an edge leads from x to y."""
    operations: NDArray[np.int8]
    """(N, 5): indices in OPERATIONS of the vertices 1, 2, ... up to the output, then -1."""
    hashes: Bytes
    """(N, 16): the bytes of the published hashes."""

    def __post_init__(self) -> None:
        for field in fields(self):
            getattr(self, field.name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.vertices)

    def cell(self, row: int) -> Cell:
        return _cell(int(self.edges[row]), self.operations[row, : self.vertices[row] - 2])

    def row(self, module_hash: str) -> int:
        """Where a cell is. Raises ArchitectureError where no cell has the hash."""
        row = self._rows.get(module_hash)
        if row is None:
            raise ArchitectureError(
                f"A hash must be one of the {len(self):,} cells, 32 hexadecimal digits in small letters, but "
                f"{quoted(module_hash)} is not; check that it is of NAS-Bench-101."
            )
        return row

    @cached_property
    def _rows(self) -> dict[str, int]:
        digits = self.hashes.tobytes().hex()
        return {digits[32 * row : 32 * (row + 1)]: row for row in range(len(self))}


def sample_cell(generator: torch.Generator) -> Cell:
    """One of all cells, each with the same probability; takes a second when it is first called."""
    sizes = np.cumsum([len(_unique_graphs(vertices)[0]) for vertices in range(2, MAX_VERTICES + 1)])
    drawn = int(torch.randint(int(sizes[-1]), (), generator=generator))
    part = int(np.searchsorted(sizes, drawn, side="right"))
    edges, operations = _unique_graphs(part + 2)
    row = drawn - int(sizes[part])  # from the end
    return _cell(int(edges[row]), operations[row])


def _cell(edges: int, operations: NDArray[np.int8]) -> Cell:
    count = len(operations) + 2
    matrix = [[0] * count for _ in range(count)]
    for bit, (source, target) in enumerate(edges_of(count)):
        matrix[source][target] = edges >> bit & 1
    return Cell(matrix, [INPUT, *(OPERATIONS[index] for index in operations), OUTPUT])


def enumerate_cells(max_vertices: int = MAX_VERTICES, progress: Progress | None = None) -> Cells:
    """All cells of 2 to `max_vertices` (2..7) vertices; all seven take some ten seconds of one core."""
    parts = [_unique_graphs(vertices) for vertices in range(2, max_vertices + 1)]
    total, done = sum(len(edges) for edges, _ in parts), 0
    hashes = []
    for edges, operations in parts:
        for start in range(0, len(edges), _BATCH):
            batch = slice(start, start + _BATCH)
            hashes.append(hash_modules(edges[batch], operations[batch]))
            done += len(hashes[-1])
            if progress:
                progress(done, total)
    width = MAX_VERTICES - 2
    padded = [np.pad(inner, ((0, 0), (0, width - inner.shape[1])), constant_values=-1) for _, inner in parts]
    return Cells(
        vertices=np.concatenate([np.full(len(inner), 2 + inner.shape[1], np.uint8) for _, inner in parts]),
        edges=np.concatenate([edges for edges, _ in parts]),
        operations=np.concatenate(padded),
        hashes=np.concatenate(hashes),
    )


def labelled_graphs(vertices: int) -> int:
    """How many cells of so many vertices (2..7) there are when isomorphic ones count as different."""
    return len(_topologies(vertices)) * int(len(OPERATIONS) ** (vertices - 2))


def _topologies(vertices: int) -> Bits:
    """The edges (M,), ascending, of the graphs in which every vertex is on a way from input to output."""
    bits = np.arange(2 ** len(edges_of(vertices)), dtype=np.uint32)
    for vertex in range(vertices):
        into = sum(1 << bit for bit, (_, target) in enumerate(edges_of(vertices)) if target == vertex)
        out = sum(1 << bit for bit, (source, _) in enumerate(edges_of(vertices)) if source == vertex)
        bits = bits[((bits & into) != 0) | (vertex == 0)]
        bits = bits[((bits & out) != 0) | (vertex == vertices - 1)]
    count = np.zeros(len(bits), np.uint8)
    for bit in range(len(edges_of(vertices))):
        count += (bits >> bit & 1).astype(np.uint8)
    return bits[count <= MAX_EDGES]


@cache
def _unique_graphs(vertices: int) -> tuple[Bits, NDArray[np.int8]]:
    """Edges (N,) and operations (N, vertices - 2) of the graphs that come before all their isomorphs.

    A graph has the first edges of its topology, and of these, with the automorphisms of the topology, the first
    operations: both are compared for every order of the inner vertices, so that nothing rests on the hash.
    """
    topologies = _topologies(vertices)
    orders = list(permutations(range(vertices - 2)))
    images = [_renumbered(topologies, (0, *(vertex + 1 for vertex in order), vertices - 1)) for order in orders]
    first = np.all([topologies <= image for image in images], axis=0)
    operations = np.array(list(product(range(len(OPERATIONS)), repeat=vertices - 2)), np.int8)
    rank = np.arange(len(operations))
    weights = len(OPERATIONS) ** np.arange(vertices - 2)[::-1]
    least = np.ones((int(first.sum()), len(operations)), bool)
    for order, image in zip(orders, images, strict=True):
        automorphism = (image == topologies)[first]
        least &= ~automorphism[:, None] | (rank <= operations[:, order] @ weights)
    rows, choices = np.nonzero(least)
    return topologies[first][rows], operations[choices]


def _renumbered(edges: Bits, order: Sequence[int]) -> Bits:
    """The edges when vertex x has the number `order[x]`; all bits set where one would lead backwards."""
    moved, valid = np.zeros_like(edges), np.ones(len(edges), bool)
    for bit, (source, target) in enumerate(edges_of(len(order))):
        present = edges >> bit & 1
        if order[source] < order[target]:
            moved |= present << EDGES.index((order[source], order[target]))
        else:
            valid &= present == 0
    return np.where(valid, moved, np.uint32(2**32 - 1))


# The cache


def load_cells(progress: Progress | None = None) -> Cells:
    """All cells, enumerated once and then read from `cache_file()`, in well under a second.

    A file that is damaged is made anew; one that cannot be written costs the time again, and nothing else.
    """
    try:
        path = cache_file()
    except RuntimeError:  # there is no home directory
        return enumerate_cells(progress=progress)
    cells = _read(path)
    if cells is None:
        cells = enumerate_cells(progress=progress)
        with suppress(OSError):
            _write(cells, path)
    return cells


def cache_file() -> Path:
    """Below XDG_CACHE_HOME where that is set, else below ~/.cache. Raises RuntimeError where there is no home."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = folder if folder.is_absolute() else Path.home() / ".cache"
    return base / "nasengine" / f"nasbench101-cells-{_VERSION}.npz"


def _read(path: Path) -> Cells | None:
    """The cells of a whole file, which ends with the SHA-256 of what comes before."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        return None
    with np.load(io.BytesIO(content[:-32]), allow_pickle=False) as arrays:
        return Cells(**{field.name: arrays[field.name] for field in fields(Cells)})


def _write(cells: Cells, path: Path) -> None:
    """Written beside and renamed: whoever reads meanwhile finds the old file or the new one."""
    content = io.BytesIO()
    np.savez(content, **{field.name: getattr(cells, field.name) for field in fields(cells)})
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
