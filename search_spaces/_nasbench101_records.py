"""The official files of NAS-Bench-101, `nasbench_full.tfrecord` and `nasbench_only108.tfrecord`, without TensorFlow.

A TFRecord file is a row of frames: the length of the data in 8 bytes, the masked CRC-32C of these, the data, and their
masked CRC-32C; all numbers are little endian. A record of the benchmark is one training of one cell, as a JSON list of
the hash, the epochs, the matrix row by row, the operations, and the metrics, a protocol buffer in base64.

Reference: Ying et al., ICML 2019, arXiv:1902.09635; format as in google-research/nasbench.
"""

from __future__ import annotations

import json
import os
import re
from binascii import a2b_base64
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from nasengine.errors import ArchitectureError, DataError
from search_spaces._nasbench101 import (
    EDGES,
    INPUT,
    MAX_VERTICES,
    OPERATIONS,
    OUTPUT,
    Bits,
    Bytes,
    Cell,
    hash_modules,
    quoted,
    read_cell,
)
from search_spaces._nasbench101_cells import load_cells
from search_spaces._nasbench101_metrics import Metrics, MetricsError, parse_metrics

BUDGETS: Final = (4, 12, 36, 108)
"""Epochs for which the published cells were trained."""
RECORD: Final = np.dtype(
    [
        ("number", "<i8"),  # in its file, from 1
        ("hash", "u1", 16),
        ("epochs", "<i2"),
        ("vertices", "u1"),
        ("edges", "<u4"),  # as in Cells, as are the operations
        ("operations", "i1", MAX_VERTICES - 2),
        ("parameters", "<i4"),
        ("measured", "<f8", 9),
    ]
)
EVALUATION: Final = ("training_time", "train_accuracy", "validation_accuracy", "test_accuracy")
MEASURED: Final = (*(f"{when}_{what}" for when in ("halfway", "final") for what in EVALUATION), "total_time")
"""What the last field of a RECORD has; times are in seconds, accuracies shares 0..1."""

Records: TypeAlias = NDArray[np.void]
"""(N,) of the type RECORD."""
Progress: TypeAlias = Callable[[int, int], object]
"""Is called with the bytes done, and the bytes in all."""

_BLOCK = 2**22
_LONGEST = 2**20
_MANY = 2**14
_HEAD, _FOOT = 12, 4
_MASK = 0xA282EAD8
_DECODER = json.JSONDecoder()
_HASH = re.compile("[0-9a-f]{32}").fullmatch
_LONGEST_OPERATIONS = len(",".join([INPUT, *[max(OPERATIONS, key=len)] * (MAX_VERTICES - 2), OUTPUT]))
_CODES = {name: code for code, name in enumerate(OPERATIONS)}


def read_records(
    path: Path, progress: Progress | None = None, seen: Callable[[bytes], object] | None = None
) -> Iterator[Records]:
    """All records of a file in their order, some thousands at a time; memory does not grow with the file.

    Both checksums, the form, the ranges and the hash of every record are checked. The cell comes as it is pruned, the
    evaluation before training is left out. `seen` is called with all bytes of the file, for a checksum of it.

    Raises:
        DataError: the file is missing, cut, damaged or of another kind; with the number of the record, from 1.
    """
    hashes = _Hashes()
    for first, frames in _frames(path, progress, seen):
        yield _records(frames, first, path, hashes)


def wrong(path: Path, number: int, must: str, has: str) -> DataError:
    """What is said of a record that cannot be used."""
    return DataError(f"Record {number:,} of {path} must {must}, but {has}; get the official file of NAS-Bench-101.")


# Frames


def _frames(
    path: Path, progress: Progress | None, seen: Callable[[bytes], object] | None
) -> Iterator[tuple[int, list[bytes]]]:
    """The number of the first of some records, and their data."""
    first, done, rest, problem = 1, 0, b"", ""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while not problem and (block := file.read(_BLOCK)):
                if seen:
                    seen(block)
                frames, rest, problem = _split(rest + block)
                if frames:  # what came before a problem may have one of its own, which is the first
                    yield first, frames
                first, done = first + len(frames), done + len(block)
                if progress:
                    progress(done, size)
    except OSError as error:
        raise DataError(
            f"The file of NAS-Bench-101 must be readable, but {path} is not: {error.strerror or error}."
        ) from None
    if not problem and rest:
        problem = f"the file is cut {len(rest):,} bytes after its beginning"
    if problem or not done:
        problem = problem or "the file is empty"
        other = ", or is no TFRecord file" if first == 1 and done else ""
        raise wrong(path, first, "be whole, with its two checksums", f"{problem}{other}")


def _split(content: bytes) -> tuple[list[bytes], bytes, str]:
    """The data of whole frames, the rest, and what is wrong with it if something is."""
    frames: list[bytes] = []
    start, crc = 0, google_crc32c.value
    while start + _HEAD <= len(content):
        length = _length(content[start : start + _HEAD])
        if not 0 <= length <= _LONGEST:
            return frames, content[start:], "that of its length differs" if length < 0 else "it is far too long"
        end = start + _HEAD + length
        if end + _FOOT > len(content):
            break
        data = content[start + _HEAD : end]
        if _masked(crc(data)) != int.from_bytes(content[end : end + _FOOT], "little"):
            return frames, content[start:], "that of its data differs"
        frames.append(data)
        start = end + _FOOT
    return frames, content[start:], ""


@lru_cache(1024)
def _length(head: bytes) -> int:
    """The length that the head of a frame gives, -1 where its checksum differs; most heads come often."""
    length, check = head[:8], int.from_bytes(head[8:], "little")
    return int.from_bytes(length, "little") if _masked(google_crc32c.value(length)) == check else -1


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


# Records


class _Listed(NamedTuple):
    """The parts of one record."""

    module_hash: str
    epochs: int
    matrix: str
    operations: str
    metrics: bytes


def _records(frames: Sequence[bytes], first: int, path: Path, hashes: _Hashes) -> Records:
    """Records from their data."""
    listed = [_listed(frame, number, path) for number, frame in enumerate(frames, start=first)]
    records = np.zeros(len(listed), RECORD)
    records["number"] = np.arange(first, first + len(listed))
    records["epochs"] = [row.epochs for row in listed]
    _put_cells(records, listed, hashes, path)
    try:
        metrics = parse_metrics([row.metrics for row in listed])
    except MetricsError as error:
        raise wrong(path, first + error.place, "have the published metrics", f"it {error.has}") from None
    _check_metrics(metrics, first, path)
    records["parameters"] = metrics.parameters
    records["measured"][:, :-1] = metrics.evaluations[:, 1:, 1:].reshape(len(listed), -1)
    records["measured"][:, -1] = metrics.total_time
    return records


def _listed(data: bytes, number: int, path: Path) -> _Listed:
    try:
        text = data.decode()
        (module_hash, epochs, matrix, operations, metrics), end = _DECODER.raw_decode(text)
        row = _Listed(module_hash, epochs, matrix, operations, a2b_base64(metrics, strict_mode=True))
        texts = isinstance(matrix, str) and isinstance(operations, str)
        plain = end == len(text) and _HASH(module_hash) and type(epochs) is int and texts
    except (ValueError, TypeError, RecursionError):
        plain = None
    if not plain:
        must = "be a JSON list of a hash, epochs, a matrix, operations, and metrics in base64"
        raise wrong(path, number, must, f"is {quoted(data.decode(errors='replace'))}")
    if row.epochs not in BUDGETS:
        raise wrong(path, number, f"have one of the budgets {', '.join(map(str, BUDGETS))}", f"has {row.epochs} epochs")
    return row


def _check_metrics(metrics: Metrics, first: int, path: Path) -> None:
    epochs, times = metrics.evaluations[..., 0], metrics.evaluations[..., 1]
    shares = metrics.evaluations[..., 2:]
    checks = {
        "a number of parameters from 1 to 2^31 - 1": (metrics.parameters > 0) & (metrics.parameters < 2**31),
        "accuracies from 0 to 1": ((shares >= 0) & (shares <= 1)).all(axis=(1, 2)),
        "evaluations of rising epochs from 0": (epochs[:, 0] >= 0) & (epochs[:, 1:] > epochs[:, :-1]).all(axis=1),
        "finite times from 0": (_is_time(times).all(axis=1)) & _is_time(metrics.total_time),
    }
    bad = [(int(fine.argmin()), must) for must, fine in checks.items() if not fine.all()]
    if bad:
        place, must = min(bad)
        raise wrong(path, first + place, f"have {must}", "has others")


def _is_time(seconds: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.isfinite(seconds) & (seconds >= 0)


# Cells


def _put_cells(records: Records, listed: Sequence[_Listed], hashes: _Hashes, path: Path) -> None:
    """Puts the pruned cells and their hashes, which must be those that the records give; each cell is hashed once."""
    places: dict[tuple[str, str, str], int] = {}
    index = np.array([places.setdefault((r.module_hash, r.matrix, r.operations), len(places)) for r in listed])
    cells = np.zeros(len(places), RECORD)
    cells["number"] = records["number"][np.unique(index, return_index=True)[1]]
    cells["hash"] = np.frombuffer(bytes.fromhex("".join(key[0] for key in places)), np.uint8).reshape(-1, 16)
    for place, (_, matrix, operations) in enumerate(places):
        vertices, edges, codes = _coded(matrix, operations) or _pruned(matrix, operations, cells[place], path)
        cells["vertices"][place], cells["edges"][place], cells["operations"][place] = vertices, edges, codes
    found = hashes(cells)
    fine = (found == cells["hash"]).all(axis=1)
    if not fine.all():
        place = int(fine.argmin())
        must = f"have the hash of its cell, {found[place].tobytes().hex()}"
        raise wrong(path, int(cells["number"][place]), must, f"has {cells['hash'][place].tobytes().hex()}")
    for name in ("hash", "vertices", "edges", "operations"):
        records[name] = cells[name][index]


class _Hashes:
    """Hashes of pruned cells: computed, or once these are many looked up among all cells, which costs no more."""

    def __init__(self) -> None:
        self._computed = 0

    def __call__(self, cells: Records) -> Bytes:
        """(N, 16)."""
        if self._computed < _MANY:
            return self._compute(cells)
        keys, known = self._published
        wanted = _keys(cells["vertices"], cells["edges"], cells["operations"])
        rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hashes, other = known[rows], keys[rows] != wanted
        if other.any():  # isomorphs of the published cells
            hashes[other] = self._compute(cells[other])
        return hashes

    def _compute(self, cells: Records) -> Bytes:
        self._computed += len(cells)
        hashes = np.zeros((len(cells), 16), np.uint8)
        for vertices in np.unique(cells["vertices"]):
            own = cells["vertices"] == vertices
            hashes[own] = hash_modules(cells["edges"][own], cells["operations"][own][:, : vertices - 2])
        return hashes

    @cached_property
    def _published(self) -> tuple[NDArray[np.int64], Bytes]:
        cells = load_cells()
        return _keys(cells.vertices, cells.edges, cells.operations), cells.hashes


def _keys(vertices: Bytes, edges: Bits, operations: NDArray[np.int8]) -> NDArray[np.int64]:
    """(N,) one number a pruned cell, in the order of Cells."""
    digits = 4 ** np.arange(operations.shape[1], dtype=np.int64)[::-1]
    first = (vertices.astype(np.int64) << len(EDGES)) + edges
    return np.int64(4 ** operations.shape[1]) * first + (operations + np.int64(1)) @ digits


_Coded: TypeAlias = tuple[int, int, tuple[int, ...]]
"""The number of vertices, the edges and the operations of a pruned cell, as in Cells."""


def _coded(matrix: str, operations: str) -> _Coded | None:
    """A cell that is pruned, in its usual form; None for any other."""
    if len(matrix) > MAX_VERTICES**2 or len(operations) > _LONGEST_OPERATIONS:
        return None
    graph, codes = _graph(matrix), _codes(operations)
    if graph is None or codes is None or graph[0] - 2 != len(codes):
        return None
    return *graph, (*codes, *[-1] * (MAX_VERTICES - 2 - len(codes)))


@lru_cache(2**14)
def _graph(matrix: str) -> tuple[int, int] | None:
    """The vertices and the edges of a matrix, None where it is not that of a pruned cell; many cells have the same."""
    try:
        cell = read_cell(matrix, ",".join([INPUT, *[OPERATIONS[0]] * (round(len(matrix) ** 0.5) - 2), OUTPUT]))
    except ArchitectureError:
        return None
    return (len(cell.matrix), _edges(cell)) if cell.pruned() is cell else None


@lru_cache(2**10)
def _codes(operations: str) -> tuple[int, ...] | None:
    """The operations in between, None where they are not those of a cell."""
    first, *inner, last = operations.split(",") if "," in operations else ("", "")
    if (first, last) != (INPUT, OUTPUT) or not set(inner) <= set(_CODES):
        return None
    return tuple(_CODES[name] for name in inner)


def _pruned(matrix: str, operations: str, record: np.void, path: Path) -> _Coded:
    """Any cell, pruned. Raises DataError where it is none."""
    try:
        cell = read_cell(matrix, operations).pruned()
    except ArchitectureError as error:
        has = f"has none ({str(error).rstrip('.')})"
        raise wrong(path, int(record["number"]), "have a cell", has) from None
    codes = [_CODES[name] for name in cell.operations[1:-1]]
    return len(cell.matrix), _edges(cell), (*codes, *[-1] * (MAX_VERTICES - 2 - len(codes)))


def _edges(cell: Cell) -> int:
    return sum(1 << bit for bit, (x, y) in enumerate(EDGES) if y < len(cell.matrix) and cell.matrix[x][y])
