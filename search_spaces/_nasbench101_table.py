"""Cells of NAS-Bench-101 as the rows of a table, by their hashes or by their matrices and operations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isqrt
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError, DataError
from search_spaces._nasbench101 import EDGES, INPUT, MAX_VERTICES, OPERATIONS, OUTPUT, Cell, edges_of, quoted
from search_spaces._nasbench101_cells import load_cells
from search_spaces._nasbench101_sequence import (
    CellSequence,
    Codes,
    Rows,
    allowed,
    canonical,
    codes_of,
    pruned,
    sequence_of,
)

if TYPE_CHECKING:
    import pandas as pd

MATRIX: Final = ("matrix", "adjacency")
"""Names of the column of matrices, the one that is taken first before the official one."""
TABLE_COLUMNS: Final = ("hash", *MATRIX, "n_vertices", "operations", "parameters", "architecture")
"""What `write_table` writes and `read_table` reads."""

_HASH = re.compile("[0-9a-f]{32}")
_LIST = str.maketrans("", "", "[]()'\" \n")


def write_table(sequence: CellSequence, parameters: Rows) -> pd.DataFrame:
    """Columns hash, matrix (the digits of its rows), operations (with commas) and parameters."""
    import pandas as pd

    codes = sequence.codes()
    forms, matrix = _distinct(codes.vertices.astype(np.int64) << 32 | codes.edges)
    matrices = [_digits(form >> 32, form & 2**32 - 1) for form in forms]
    kinds, inner = np.unique(codes.operations, axis=0, return_inverse=True)
    names = [",".join([INPUT, *(OPERATIONS[kind] for kind in row if kind >= 0), OUTPUT]) for row in kinds]
    return pd.DataFrame(
        {
            "hash": pd.Series(sequence.hashes(), dtype=str),
            "matrix": pd.Series(np.array(matrices, object)[matrix], dtype=str),
            "operations": pd.Series(np.array(names, object)[inner.reshape(-1)], dtype=str),
            "parameters": parameters,
        }
    )


def read_table(table: pd.DataFrame, read: Callable[[str], Architecture]) -> Sequence[Architecture]:
    """The cells of the rows, the published one of their isomorphs; texts of architectures are taken as they are.

    Columns: `matrix` or `adjacency`, the digits of the V x V entries or lists of rows, and `operations`, with commas,
    from "input" to "output"; a column `n_vertices` says how many of 7 x 7 entries count. Or `hash`, which must agree
    where both are there. Or `architecture`, for `read`.

    Raises:
        DataError: with the number of the row, counted from 1.
    """
    matrix = next((name for name in MATRIX if name in table), None)
    if matrix is not None:
        if "operations" not in table:
            raise DataError(
                f"A table with the column {matrix!r} must have the column 'operations' too, but has "
                f"{', '.join(map(str, table)) or 'none'}; add the operations of the vertices."
            )
        return _by_matrix(table, matrix)
    if "hash" in table:
        return _by_hash(_texts(table, "hash"))
    if "architecture" in table:
        return _by_text(_texts(table, "architecture"), read)
    raise DataError(
        "A table of cells must have the column 'hash', 'matrix' and 'operations', or 'architecture', but has "
        f"{', '.join(map(str, table)) or 'none'}; name its columns so."
    )


def _by_text(texts: list[str], read: Callable[[str], Architecture]) -> Sequence[Architecture]:
    plain = _plain(texts)
    if plain is not None:
        return plain
    found = []
    for row, text in enumerate(texts, start=1):
        try:
            found.append(read(text))
        except ArchitectureError as error:
            raise DataError(f"Row {row} of a table must have an architecture: {error}") from None
    sequence = sequence_of(codes_of(found))
    return sequence if all(map(Architecture.__eq__, sequence, found)) else found


def _plain(texts: list[str]) -> CellSequence | None:
    """What `read` gives, in a tenth of its time, where each cell is the first of its isomorphs; else None."""
    if texts and all(text.startswith("edge/") for text in texts):
        try:
            sequence = sequence_of(codes_of([Architecture.parse(text) for text in texts]))
        except ArchitectureError:
            return None
        return sequence if all(map(str.__eq__, map(str, sequence), texts)) else None
    rows, _, operations = zip(*(text.partition(" ") for text in texts), strict=True) if texts else ((), (), ())
    named = [",".join([INPUT, *([text] if text else []), OUTPUT]) for text in operations]
    codes, whole = _codes([_square(text) for text in rows], named, [0] * len(texts))
    if not (whole & allowed(codes)).all() or any(text != text.translate(_LIST) for text in operations):
        return None
    return sequence_of(codes) if np.array_equal(canonical(pruned(codes)).keys(), codes.keys()) else None


def _by_hash(texts: list[str]) -> CellSequence:
    wrong = next((row for row, text in enumerate(texts) if not _HASH.fullmatch(text)), None)
    if wrong is None:
        cells = load_cells()
        known = np.ascontiguousarray(cells.hashes).view("S16").reshape(-1)
        wanted = np.frombuffer(bytes.fromhex("".join(texts)), "S16")
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
        rows = order[place]
        absent = np.flatnonzero(known[rows] != wanted)
        if not len(absent):
            return CellSequence(cells, rows)
        wrong = int(absent[0])
    raise DataError(
        f"Row {wrong + 1} of a table must have the hash of a cell, 32 hexadecimal digits in small letters, but has "
        f"{quoted(texts[wrong])}, which no cell has; check that it is of NAS-Bench-101."
    )


def _by_matrix(table: pd.DataFrame, column: str) -> CellSequence:
    operations = _texts(table, "operations")
    matrices = _texts(table, column, [text.count(",") + 1 for text in operations])
    given = _vertices(table, len(matrices))
    raw, whole = _codes(matrices, operations, given)
    codes = pruned(raw)
    for row in np.flatnonzero(~(whole & allowed(codes))).tolist():
        _put(codes, row, _cell(matrices[row], operations[row], given[row], row))
    sequence = sequence_of(canonical(codes))
    if "hash" in table:
        _check_hashes(_texts(table, "hash"), sequence.hashes())
    return sequence


def _codes(matrices: list[str], operations: list[str], given: list[int]) -> tuple[Codes, NDArray[np.bool_]]:
    """The cells as they are numbered, and (N,) which of them are right so far and have seven vertices at most."""
    kinds, inner = _distinct(operations)
    counts, labels = zip(*map(_inner, kinds), strict=True) if kinds else ((), ())
    forms, outer = _distinct(list(zip(given, matrices, strict=True)))
    ends, bits = zip(*(_edges(text, count) for count, text in forms), strict=True) if forms else ((), ())
    vertices, edges = np.array(ends, np.int64)[outer], np.array(bits, np.uint32)[outer]
    padded = np.array(labels, np.int8).reshape(-1, MAX_VERTICES - 2)[inner]
    whole = (vertices > 0) & (vertices == np.array(counts, np.int64)[inner])
    vertices, edges = np.where(whole, vertices, 2), np.where(whole, edges, 0)
    return Codes(vertices.astype(np.uint8), edges.astype(np.uint32), padded), whole


def _check_hashes(given: list[str], found: list[str]) -> None:
    for row, (one, other) in enumerate(zip(given, found, strict=True), start=1):
        if one != other:
            raise DataError(
                f"Row {row} of a table must have the hash of its matrix and operations, {other}, but has "
                f"{quoted(one)}; correct one of them."
            )


def _cell(matrix: str, operations: str, count: int, row: int) -> Cell:
    """Slow, and says what is wrong; only cells of more than seven vertices come out of it."""
    try:
        return Cell(_matrix(matrix, count), _words(operations)).pruned()
    except ArchitectureError as error:
        raise DataError(f"Row {row + 1} of a table must have a cell: {error}") from None


def _put(codes: Codes, row: int, cell: Cell) -> None:
    count = len(cell.matrix)
    present = [bit for bit, (source, target) in enumerate(edges_of(count)) if cell.matrix[source][target]]
    inner = [OPERATIONS.index(operation) for operation in cell.operations[1:-1]]
    codes.vertices[row], codes.edges[row] = count, sum(1 << bit for bit in present)
    codes.operations[row] = [*inner, *[-1] * (MAX_VERTICES - count)]


# Texts


def _texts(table: pd.DataFrame, name: str, sizes: Sequence[int] = ()) -> list[str]:
    """The texts of a column; whole numbers, which have lost their zeros on the left, have the digits of `sizes`."""
    import pandas as pd

    def text(row: int, value: Any) -> str:
        if isinstance(value, (list, tuple, np.ndarray)):
            return json.dumps(value, default=lambda array: array.tolist())
        if pd.isna(value):
            raise DataError(
                f"Row {row + 1} of a table must have an entry in the column {name!r}, but has none; fill it in or "
                "leave the row out."
            )
        whole = sizes and isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        return str(value).zfill(sizes[row] ** 2) if whole else str(value)

    values = table[name].tolist()
    return [value if type(value) is str else text(row, value) for row, value in enumerate(values)]


def _vertices(table: pd.DataFrame, rows: int) -> list[int]:
    """The numbers of vertices that the table says, 0 where it says nothing."""
    if "n_vertices" not in table:
        return [0] * rows
    texts = _texts(table, "n_vertices")
    for row, text in enumerate(texts, start=1):
        if not re.fullmatch(r"[0-9]{1,9}(\.0)?", text) or float(text) < 2:
            raise DataError(
                f"Row {row} of a table must have a whole number of vertices from 2, but 'n_vertices' is "
                f"{quoted(text)}; count the rows of the matrix."
            )
    return [int(float(text)) for text in texts]


def _distinct(values: Any) -> tuple[list[Any], NDArray[np.int64]]:
    """The different ones in their order, and where each is among them."""
    if isinstance(values, np.ndarray):
        unique, places = np.unique(values, return_inverse=True)
        return unique.tolist(), places.reshape(-1)
    index = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return list(index), np.fromiter((index[value] for value in values), np.int64, len(values))


def _digits(vertices: int, edges: int) -> str:
    present = {pair for bit, pair in enumerate(EDGES) if edges >> bit & 1}
    return "".join(str(int((x, y) in present)) for x in range(vertices) for y in range(vertices))


def _words(text: str) -> list[str]:
    return text.translate(_LIST).split(",")


def _inner(text: str) -> tuple[int, list[int]]:
    """How many vertices, 0 if this is wrong or too much, and the operations in between, padded."""
    first, *inner, last = _words(text) if "," in text else ("", "")
    if (first, last) != (INPUT, OUTPUT) or len(inner) > MAX_VERTICES - 2 or not set(inner) <= set(OPERATIONS):
        return 0, [-1] * (MAX_VERTICES - 2)
    return len(inner) + 2, [*map(OPERATIONS.index, inner), *[-1] * (MAX_VERTICES - 2 - len(inner))]


def _edges(text: str, count: int) -> tuple[int, int]:
    """How many vertices, 0 if this is wrong or too much, and the edges as bits."""
    try:
        matrix = Cell(rows := _matrix(text, count), [INPUT, *[OPERATIONS[0]] * (len(rows) - 2), OUTPUT]).matrix
    except ArchitectureError:
        return 0, 0
    if len(matrix) > MAX_VERTICES:
        return 0, 0
    return len(matrix), sum(matrix[x][y] << bit for bit, (x, y) in enumerate(edges_of(len(matrix))))


def _matrix(text: str, count: int) -> list[list[int]]:
    """The rows of a matrix; of 7 x 7 entries those of `count` vertices. Raises ArchitectureError for other texts."""
    rows: Any = text
    if re.fullmatch("[0-9]+", text):
        side = isqrt(len(text))
        rows = [[int(digit) for digit in text[start : start + side]] for start in range(0, len(text), side)]
    else:
        with suppress(ValueError, RecursionError):
            rows = json.loads(text)
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(rows) for row in rows):
        raise ArchitectureError(
            f"A matrix must be square, but is {quoted(text)}; write the digits of its rows one after the other, "
            "'010001000', or as lists; digits that begin with 0 are texts, not numbers."
        )
    beyond = [*(row[count:] for row in rows), *rows[count:]]
    if count and len(rows) == MAX_VERTICES and not any(map(any, beyond)):
        rows = [row[:count] for row in rows[:count]]
    if count and len(rows) != count:
        raise ArchitectureError(
            f"A matrix must have as many rows as 'n_vertices' says, {count}, or 7 with zeros in those beyond, but is "
            f"{quoted(text)}; correct one of them."
        )
    return cast(list[list[int]], rows)


def _square(text: str) -> str:
    """The digits of a matrix whose rows above the diagonal are given, "11-1"; no digits for other texts."""
    rows = text.split("-")
    if [len(row) for row in rows] != list(range(len(rows), 0, -1)):
        return ""
    return "".join("0" * place + row for place, row in enumerate([*rows, ""], start=1))
