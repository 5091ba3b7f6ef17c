"""An official file of NAS-Bench-101, made into one compact parquet file: a row a cell, sorted by the hash.

The columns are "hash" (16 bytes), "adjacency" and "operations" as in the official file, "parameters", and for every
budget, repeat and measure one such as "108_epochs/repeat_1/final_test_accuracy".
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from nasengine.errors import DataError
from search_spaces._nasbench101 import INPUT, OPERATIONS, OUTPUT, edges_of
from search_spaces._nasbench101_records import MEASURED, RECORD, Progress, Records, read_records, wrong

if TYPE_CHECKING:
    import pyarrow as pa

REPEATS: Final = 3
KEY: Final = b"nasengine"
"""Of the entry in the parquet metadata that says what the file is; see `sealed`."""
FORMAT: Final = "nasbench101-table"
VERSION: Final = 1
CELL_COLUMNS: Final = ("hash", "adjacency", "operations", "parameters")

_MAGIC = b"PAR1"
_PARTS = 64  # of the temporary copy, by the first bits of the hash
_ROWS = 2**15  # of a row group


def convert_records(source: Path, out: Path, progress: Progress | None = None) -> None:
    """Makes `out` of an official file; a conversion that is stopped leaves nothing behind, and an old file as it was.

    The records are sorted through temporary files beside `out`, about a third of the size of the source, so that
    memory grows neither with the file nor with the order of its records.

    Args:
        source: the file.
        out: the parquet file; one that is there is replaced.
        progress: is called with (bytes done, bytes in all); the last step, from all bytes read, writes the file.

    Raises:
        DataError: of `read_records`; the records of a cell do not belong together; `out` cannot be written.
    """
    source = Path(source)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        partial = stack.enter_context(_replacing(out))
        _check_out(source, out)
        parts = [stack.enter_context(tempfile.TemporaryFile(dir=out.parent)) for _ in range(_PARTS)]
        count, budgets = 0, set[int]()
        for records in read_records(source, progress, digest.update):
            _deal(records, parts)
            count += len(records)
            budgets.update(np.unique(records["epochs"]).tolist())
        facts = {"source": source.name, "bytes": source.stat().st_size, "sha256": digest.hexdigest(), "records": count}
        _write(partial, parts, sorted(budgets), facts, source)


def column(epochs: int, repeat: int, measure: str) -> str:
    """The name of a column; repeats are counted from 1."""
    return f"{epochs}_epochs/repeat_{repeat}/{measure}"


def columns(budgets: Sequence[int]) -> list[str]:
    """The columns of all budgets in the order of the file."""
    return [column(epochs, repeat, name) for epochs in budgets for repeat in range(1, REPEATS + 1) for name in MEASURED]


def sealed(facts: dict[str, Any]) -> bytes:
    """Facts as JSON after their CRC-32C, since nothing else in a parquet file guards its metadata."""
    text = json.dumps(facts).encode()
    return b"%08x " % google_crc32c.value(text) + text


def unsealed(content: bytes) -> dict[str, Any] | None:
    """What was sealed, None where it is something else."""
    crc, _, text = content.partition(b" ")
    return dict(json.loads(text)) if crc == b"%08x" % google_crc32c.value(text) else None


# Files


def _check_out(source: Path, out: Path) -> None:
    if out.exists() and source.exists() and out.samefile(source):
        raise DataError(
            f"A conversion must have another file to write than {source}, but both are one; choose another."
        )
    if out.is_dir():
        raise DataError(f"A conversion must have a file to write, but {out} is a directory; give a name in it.")
    if out.is_file() and _is_other(out):
        raise DataError(f"A conversion must not replace files of other kinds, but {out} is one; choose another.")


def _is_other(out: Path) -> bool:
    """Whether a file is neither empty nor a converted table, which may be damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    with out.open("rb") as file:
        start = file.read(len(_MAGIC))
    try:
        return bool(start) and (start != _MAGIC or KEY not in (parquet.read_schema(out).metadata or {}))
    except (pa.ArrowException, OSError, ValueError):
        return False


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A path beside `out`, renamed to it at the end, removed when anything goes wrong."""
    partial: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem[:50]}-", suffix=".partial")
        partial = Path(name)
        os.close(descriptor)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, out)
    except OSError as error:
        raise DataError(
            f"There must be room and leave to write {out}, but there is not: {error.strerror or error}; choose another."
        ) from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _deal(records: Records, parts: Sequence[IO[bytes]]) -> None:
    """Appends every record to the part of its hash; the parts have ascending hashes."""
    part = records["hash"][:, 0].astype(np.intp) // (256 // _PARTS)
    order = np.argsort(part, kind="stable")
    ends = np.searchsorted(part[order], np.arange(_PARTS), side="right")
    for file, rows in zip(parts, np.split(order, ends[:-1]), strict=True):
        file.write(records[rows].tobytes())


def _write(
    partial: Path, parts: Sequence[IO[bytes]], budgets: Sequence[int], facts: dict[str, Any], source: Path
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    count = facts["records"] // (len(budgets) * REPEATS)
    facts = {"format": FORMAT, "version": VERSION, "cells": count, "epochs": [*budgets], "repeats": REPEATS, **facts}
    schema = _schema(budgets, sealed(facts))
    shares = [name for name in columns(budgets) if name.endswith("accuracy")]  # few values: a dictionary is short
    times = [name for name in columns(budgets) if name.endswith("time")]
    with parquet.ParquetWriter(
        partial,
        schema,
        compression="zstd",
        use_dictionary=["adjacency", "operations", *shares],
        use_byte_stream_split=times,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        waiting: list[pa.Table] = []
        for part in parts:
            part.seek(0)
            records = np.frombuffer(part.read(), RECORD)
            waiting += [_table(_grouped(records, budgets, source), schema)] if len(records) else []
            if sum(map(len, waiting)) >= _ROWS:
                writer.write_table(pa.concat_tables(waiting), row_group_size=2 * _ROWS)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=2 * _ROWS)


def _schema(budgets: Sequence[int], facts: bytes) -> pa.Schema:
    import pyarrow as pa

    kinds = (pa.binary(16), pa.string(), pa.string(), pa.int32())
    fields = [
        *zip(CELL_COLUMNS, kinds, strict=True),
        *((name, pa.float64()) for name in columns(budgets)),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], {KEY: facts})


# Cells


def _grouped(records: Records, budgets: Sequence[int], source: Path) -> Records:
    """Records (cells, budgets, repeats), by the hash; repeats are in the order of the file. Raises DataError."""
    halves = np.ascontiguousarray(records["hash"]).view(">u8").astype(np.uint64)
    records = records[np.lexsort((records["epochs"], halves[:, 1], halves[:, 0]))]
    size = len(budgets) * REPEATS
    if len(records) % size == 0:
        grid = records.reshape(-1, len(budgets), REPEATS)
        same = (grid["hash"] == grid["hash"][:, :1, :1]).all()
        if same and (grid["epochs"] == np.array(budgets)[:, None]).all():
            _check_parameters(grid, source)
            return grid
    raise _incomplete(records, budgets, source)


def _check_parameters(grid: Records, source: Path) -> None:
    parameters = grid["parameters"]
    other = grid[parameters != parameters[:, :1, :1]]
    if len(other):
        record = other[other["number"].argmin()]
        must = f"have as many parameters as the others of the cell {_hash(record)}"
        raise wrong(source, int(record["number"]), must, f"has {record['parameters']:,}")


def _incomplete(records: Records, budgets: Sequence[int], source: Path) -> DataError:
    """What is wrong where not every cell has all trainings."""
    hashes, inverse = np.unique(records["hash"], axis=0, return_inverse=True)
    counts = np.zeros((len(hashes), len(budgets)), np.int64)
    np.add.at(counts, (inverse.reshape(-1), np.searchsorted(budgets, records["epochs"])), 1)
    row, budget = (int(place) for place in np.argwhere(counts != REPEATS)[0])
    number = int(records["number"][inverse.reshape(-1) == row].max())
    has = f"it has {counts[row, budget]} of {budgets[budget]}"
    must = f"be the last of a cell with {REPEATS} trainings of {' and '.join(map(str, budgets))} epochs each"
    return wrong(source, number, must, f"{has} ({hashes[row].tobytes().hex()})")


def _hash(record: np.void) -> str:
    return bytes(record["hash"]).hex()


def _table(grid: Records, schema: pa.Schema) -> pa.Table:
    """The rows of the file, from records (cells, budgets, repeats)."""
    import pyarrow as pa

    cells = grid[:, 0, 0]
    hashes = pa.py_buffer(np.ascontiguousarray(cells["hash"]))
    rows = zip(cells["vertices"].tolist(), cells["edges"].tolist(), strict=True)
    codes = (tuple(code for code in row if code >= 0) for row in cells["operations"].tolist())
    measured = grid["measured"].reshape(len(cells), -1)
    arrays = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(cells), [None, hashes]),
        pa.array([_adjacency(*row) for row in rows]),
        pa.array([_operations(row) for row in codes]),
        pa.array(cells["parameters"]),
        *(pa.array(np.ascontiguousarray(values)) for values in measured.T),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@lru_cache(2**14)
def _adjacency(vertices: int, edges: int) -> str:
    """The matrix row by row."""
    matrix: NDArray[np.uint8] = np.zeros((vertices, vertices), np.uint8)
    for bit, edge in enumerate(edges_of(vertices)):
        matrix[edge] = edges >> bit & 1
    return "".join(map(str, matrix.reshape(-1).tolist()))


@lru_cache(2**10)
def _operations(codes: tuple[int, ...]) -> str:
    return ",".join([INPUT, *(OPERATIONS[code] for code in codes), OUTPUT])
