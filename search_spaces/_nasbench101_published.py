"""The converted table of NAS-Bench-101: opened in well under a second, looked up by cell or hash.

Reference: Ying et al., ICML 2019, arXiv:1902.09635; what a query costs as in google-research/nasbench.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from nasengine.errors import DataError, SettingError
from search_spaces._nasbench101 import Bytes, Cell, quoted, read_cell
from search_spaces._nasbench101_conversion import (
    CELL_COLUMNS,
    FORMAT,
    KEY,
    REPEATS,
    VERSION,
    column,
    columns,
    unsealed,
)
from search_spaces._nasbench101_records import EVALUATION, MEASURED

Repeat: TypeAlias = int | Literal["mean", "random"]
"""Which training of a cell: 1, 2 or 3 as they are in the official file, their mean, or one of them at random."""

_ANEW = "convert the official file again by 'nasengine benchmark convert'"


@dataclass(frozen=True)
class Evaluation:
    """What was measured half-way or at the end; seconds of training up to there, and shares 0..1."""

    training_time: float
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Training:
    """What the table has of one training of a cell, or the mean of its three.

    `parameters` are those of the network; `total_time` is in seconds, with evaluations.
    """

    module_hash: str
    parameters: int
    epochs: int
    repeat: int | Literal["mean"]
    halfway: Evaluation
    final: Evaluation
    total_time: float


@dataclass
class Spent:
    """What the queries would have cost as trainings: seconds, epochs, and how many trainings."""

    seconds: float = 0.0
    epochs: int = 0
    trainings: int = 0


class Table:
    """The trainings of N cells.

    Attributes:
        path: the file.
        facts: what the conversion wrote down: source, bytes, sha256, records, cells, epochs, repeats.
        hashes: (N, 16) bytes of the hashes, ascending.
        parameters: (N,) of the networks.
        spent: what the queries so far cost; see `query`.
    """

    def __init__(self, path: Path, file: parquet.ParquetFile, facts: Mapping[str, Any], index: _Index) -> None:
        self.path, self.facts, self.spent = path, facts, Spent()
        self.hashes, self.parameters = hashes, _ = index
        self._file = file
        self._keys = np.ascontiguousarray(hashes[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._groups: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._cells: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The budgets, ascending."""
        return tuple(self.facts["epochs"])

    def hash(self, row: int) -> str:
        """The hash of a row, 32 hexadecimal digits."""
        return str(self.hashes[row].tobytes().hex())

    def row(self, cell: Cell | str) -> int:
        """Where a cell is, or a hash. Raises DataError where the table has it not."""
        text = cell.module_hash if isinstance(cell, Cell) else cell
        try:
            digits = bytes.fromhex(text) if len(text) == 32 else b""
        except ValueError:
            digits = b""
        if not digits:
            raise DataError(f"A hash must have 32 hexadecimal digits, but got {quoted(text)}; give that of a cell.")
        key = np.uint64(int.from_bytes(digits[:8]))
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        for row in range(first, last):
            if self.hashes[row].tobytes() == digits:
                return row
        raise DataError(
            f"{self.path} must have every cell that is asked for, but none of its {len(self):,} has the hash {text}; "
            "convert a file that has it."
        )

    def cell(self, module_hash: str) -> Cell:
        """The cell of a hash, pruned, with its vertices in the published order."""
        row = self.row(module_hash)
        group = self._group(row)
        if group not in self._cells:
            with _reading(self.path):
                self._cells[group] = self._file.read_row_group(group, ["adjacency", "operations"], use_threads=False)
        place = row - int(self._starts[group])
        return read_cell(*(str(self._cells[group][name][place]) for name in ("adjacency", "operations")))

    def query(
        self,
        cell: Cell | str,
        *,
        epochs: int | None = None,
        repeat: Repeat = "mean",
        generator: torch.Generator | None = None,
    ) -> Training:
        """What is known of a cell, and adds to `spent` what training it would have cost.

        One training adds its seconds at the end (`final.training_time`) and its epochs, as the official query does. The
        mean of three is known to who trained three times: it adds the seconds of all three, and three times the epochs.
        Asking again costs again.

        Args:
            cell: it, or its hash. Vertices may have any numbers, and there may be idle ones.
            epochs: the budget; the largest one if left out.
            repeat: see Repeat.
            generator: draws the repeat where that is random.

        Raises:
            DataError: the table has not the cell.
            SettingError: it has not the budget, or there is no such repeat.
        """
        found = self.look_up(cell, epochs, _drawn(repeat, generator))
        count = REPEATS if found.repeat == "mean" else 1
        self.spent.seconds += count * found.final.training_time
        self.spent.epochs += count * found.epochs
        self.spent.trainings += count
        return found

    def look_up(self, cell: Cell | str, epochs: int | None = None, repeat: int | str = "mean") -> Training:
        """What `query` gives, at no cost."""
        if repeat != "mean" and repeat not in range(1, REPEATS + 1):
            raise SettingError(f"A repeat must be 1, 2, 3 or mean, but got {quoted(repeat)}.")
        epochs, row = self._budget(epochs), self.row(cell)
        place = row - int(self._starts[self._group(row)])
        runs = self._measured(epochs, self._group(row))[place]
        values = (runs.mean(axis=0) if repeat == "mean" else runs[int(repeat) - 1]).tolist()
        count = len(EVALUATION)
        return Training(
            module_hash=self.hash(row),
            parameters=int(self.parameters[row]),
            epochs=epochs,
            repeat="mean" if repeat == "mean" else int(repeat),
            halfway=Evaluation(*values[:count]),
            final=Evaluation(*values[count : 2 * count]),
            total_time=values[-1],
        )

    def values(self, measure: str, epochs: int | None = None) -> NDArray[np.float64]:
        """(N, 3) one measure of all cells, in the order of `hashes`, of the three trainings; names as in MEASURED."""
        if measure not in MEASURED:
            raise SettingError(f"A measure must be one of {', '.join(MEASURED)}, but got {quoted(measure)}.")
        names = [column(self._budget(epochs), repeat, measure) for repeat in range(1, REPEATS + 1)]
        with _reading(self.path):
            return _stacked(self._file.read(names, use_threads=False), names)

    def _budget(self, epochs: int | None) -> int:
        if epochs is not None and epochs not in self.epochs:
            raise SettingError(
                f"The epochs must be a budget of {self.path}, {', '.join(map(str, self.epochs))}, but are {epochs}."
            )
        return max(self.epochs) if epochs is None else epochs

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _measured(self, epochs: int, group: int) -> NDArray[np.float64]:
        """(rows, 3, measures) of a row group, which is kept."""
        if (epochs, group) not in self._groups:
            names = columns([epochs])
            with _reading(self.path):
                found = _stacked(self._file.read_row_group(group, names, use_threads=False), names)
            self._groups[epochs, group] = found.reshape(len(found), REPEATS, len(MEASURED))
        return self._groups[epochs, group]


def read_table(path: Path) -> Table:
    """Opens what `convert_records` wrote; the measures are read when they are first asked for, some thousand cells at
    a time. Pages are checked against their checksums as they are read.

    Raises:
        DataError: the file is missing, cut, damaged, or another one.
    """
    try:
        with path.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
    except OSError as error:
        raise DataError(
            f"A table of NAS-Bench-101 must be a readable file, but {path} is not: {error.strerror or error}."
        ) from None
    with _reading(path):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        facts = unsealed((file.schema_arrow.metadata or {}).get(KEY, b""))
        if facts is None or facts.get("format") != FORMAT:
            raise DataError(f"A table of NAS-Bench-101 must be a converted one, but {path} is another; {_ANEW}.")
        if facts["version"] != VERSION:
            raise DataError(
                f"A table of NAS-Bench-101 must be of version {VERSION}, but {path} is of {facts['version']}; {_ANEW}."
            )
        whole = file.schema_arrow.names == [*CELL_COLUMNS, *columns(facts["epochs"])]
        index = _index(file) if whole and file.metadata.num_rows == facts["cells"] else None
    if index is None or not _ascend(index[0]):
        raise _damaged(path)
    return Table(path, file, {**facts, "size": size}, index)


_Index: TypeAlias = tuple[Bytes, NDArray[np.int32]]
"""The hashes (N, 16) and the parameters (N,) of all cells."""


def _index(file: parquet.ParquetFile) -> _Index:
    table = file.read(["hash", "parameters"], use_threads=False)
    return _plain(table["hash"], "V16").view(np.uint8).reshape(-1, 16), _plain(table["parameters"], "<i4")


def _plain(column: pa.ChunkedArray, kind: str) -> NDArray[Any]:
    """The values of a column without missing ones; to_numpy of pyarrow imports pandas first, which takes longer."""
    size = np.dtype(kind).itemsize
    chunks = (chunk for chunk in column.chunks if len(chunk))
    parts = [np.frombuffer(chunk.buffers()[1], kind, len(chunk), size * chunk.offset) for chunk in chunks]
    return np.concatenate([np.zeros(0, kind), *parts])


def _ascend(hashes: Bytes) -> bool:
    high, low = np.ascontiguousarray(hashes).view(">u8").astype(np.uint64).T
    return bool(((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))).all())


def _stacked(table: pa.Table, names: list[str]) -> NDArray[np.float64]:
    """(rows, columns)."""
    return np.stack([_plain(table[name], "<f8") for name in names], axis=1)


def _drawn(repeat: Repeat, generator: torch.Generator | None) -> int | str:
    if repeat != "random":
        return repeat
    if generator is None:
        raise SettingError("A repeat at random must be drawn by a torch.Generator, but got none; give generator=.")
    return 1 + int(torch.randint(REPEATS, (), generator=generator))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow says of a file into one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path) from None


def _damaged(path: Path) -> DataError:
    return DataError(f"A table of NAS-Bench-101 must be a whole parquet file, but {path} is damaged; {_ANEW}.")
