"""Tables of architectures, with their scores or without: CSV, parquet or what `collect` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nasengine.architecture import Architecture
from nasengine.errors import ArchitectureError, DataError, NoOrderError
from nasengine.labelling import LABELS, NUMBERS
from nasengine.run_directory import RECORD, read_record
from nasengine.space import Space
from nasengine.task import Shapes

if TYPE_CHECKING:
    import pandas as pd

SCORE: Final = "score"
UNCERTAINTY: Final = "uncertainty"
"""Of a score that is guessed."""
_PARQUET: Final = b"PAR1"
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Source:
    """A table, and what is known of where it came from.

    Attributes:
        table: its rows; of a CSV file as texts.
        name: how messages name it.
        facts: path and checksum for run.json, the number of rows for a table in memory.
        record: the run.json of the collection that wrote it; empty if none did.
    """

    table: pd.DataFrame
    name: str
    facts: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Labels:
    """Architectures with their scores (N,) in the column `column`; higher is better."""

    architectures: Sequence[Architecture]
    scores: NDArray[np.float64]
    column: str


def read_source(table: pd.DataFrame | Path | str, what: str) -> Source:
    """A table in memory, in a CSV or parquet file, or the labels.csv of a directory; `what` names it in messages.

    Raises:
        DataError: it is missing, damaged or has no rows.
        RunError: it is in a directory whose run.json is damaged.
    """
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        source = Source(table.rename(columns=str), f"the table of {what}", {"rows": len(table)})
    elif not isinstance(table, (str, Path)):
        raise DataError(
            f"A table of {what} must be a pandas.DataFrame or the path of a file, but is a {type(table).__name__}; "
            "make a DataFrame of it."
        )
    else:
        path = Path(table).expanduser()
        file = path / LABELS if path.is_dir() else path
        content = _content(file, what)
        facts = {"path": str(file.resolve()), "sha256": hashlib.sha256(content).hexdigest()}
        beside = file.parent / RECORD
        record = read_record(file.parent) if file.name == LABELS and beside.exists() else {}
        record = record if record.get("verb") == "collect" else {}
        source = Source(_parsed(file, content, what), str(file), facts, record)
    _check_columns(source, what)
    if not len(source.table):
        raise DataError(
            f"A file of {what} must have one row an architecture, but {source.name} has none; add some rows."
        )
    return source


def _content(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"A file of {what} must be a readable CSV or parquet file, but of {file} it is said: "
            f"{error.strerror or error}; check the path."
        ) from None


def _parsed(file: Path, content: bytes, what: str) -> pd.DataFrame:
    """Numbers of a CSV file stay texts: the digits of a matrix begin with zeros."""
    import io

    import pandas as pd

    kind = "parquet" if content.startswith(_PARQUET) or file.suffix.lower() in (".parquet", ".pq") else "CSV"
    try:
        if kind == "parquet":
            return pd.read_parquet(io.BytesIO(content))
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        names = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, header=None, nrows=1).iloc[0]
        return table.set_axis(names.tolist(), axis=1)  # pandas gives those that come twice other names
    except (OSError, ValueError):  # pandas' and pyarrow's errors are of these kinds
        raise DataError(
            f"A file of {what} must be a whole {kind} table with the names of its columns, but {file} is none; write "
            "it anew."
        ) from None


def _check_columns(source: Source, what: str) -> None:
    names = source.table.columns
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise DataError(
            f"A file of {what} must have each column once, but {source.name} has {twice!r} twice; rename or drop one."
        )


def read_architectures(space: Space, shapes: Shapes, source: Source) -> Sequence[Architecture]:
    """The architectures of the rows. Raises DataError for those of no architecture of the space."""
    try:
        found = space.from_table(source.table)
    except DataError as error:
        raise DataError(str(error).replace("of a table", f"of {source.name}", 1)) from None
    if isinstance(found, list):  # other sequences are made of what is in the space
        choices = space.choices(shapes)
        for row, architecture in enumerate(found, start=1):
            try:
                with suppress(LookupError):
                    architecture = space.canonical(choices, architecture)
                space.check(choices, architecture)
            except ArchitectureError as error:
                raise DataError(f"Row {row} of {source.name} must be of space {space.name!r}: {error}") from None
    return found


def read_scores(space: Space, source: Source, column: str | None, architectures: Sequence[Architecture]) -> Labels:
    """The labels in a source, whose architectures are read already, with scores that are finite numbers.

    Without a name of the column it is `score`, or the only one with numbers that is none of the space's own.

    Raises:
        DataError: there is no such column, or it has other things than one number a row; fewer than two rows.
    """
    name = column if column is not None else _only_column(space, source)
    if name not in source.table:
        there = ", ".join(map(str, source.table))
        raise DataError(
            f"Labels must have a column {name!r} of scores, but {source.name} has {there}; name another one by --score."
        )
    values: pd.Series[Any] = source.table[name]
    several = next((row for row, value in enumerate(values) if np.ndim(value) > 0), None)
    if several is not None:
        raise DataError(
            f"A score must be one number, but row {several + 1} of {source.name} has several in the column {name!r}; "
            "rank by one of them at a time."
        )
    scores = _numbers(values)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"A score must be a finite number, but row {row + 1} of {source.name} has {str(values.iloc[row])[:40]!r} "
            f"in the column {name!r}; leave the row out, or give a failed training the score of chance."
        )
    if len(scores) < 2:
        raise NoOrderError(
            f"A predictor must have at least two labels to be fitted, but {source.name} has {len(scores)}; label more "
            "architectures."
        )
    return Labels(architectures, scores, name)


def _only_column(space: Space, source: Source) -> str:
    if {SCORE, UNCERTAINTY} <= set(source.table):
        raise DataError(
            f"Labels must have true scores, but {source.name} is of 'nasengine rank', whose column 'score' is guessed; "
            "name the column of the true ones by --score."
        )
    if SCORE in source.table:
        return SCORE
    own = {*space.table_columns, *NUMBERS}
    names = [name for name in map(str, source.table) if name not in own and _is_numeric(source.table[name])]
    if len(names) == 1:
        return names[0]
    listed = f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
    found = f"several columns of numbers: {listed}" if names else "no column of numbers"
    raise DataError(
        f"Labels must have a column 'score', or one column of numbers, but {source.name} has {found}; name it by "
        "--score."
    )


def _is_numeric(column: Any) -> bool:
    """Whether a column has a number somewhere."""
    return bool(column.dtype != bool and np.isfinite(_numbers(column)).any())


def _numbers(values: pd.Series[Any]) -> NDArray[np.float64]:
    """(N,): NaN for what is no number."""
    import pandas as pd

    if values.dtype.kind in "mMc":  # times and complex numbers, of which pandas makes numbers
        return np.full(len(values), np.nan)
    plain = values.map(lambda value: None if np.ndim(value) or isinstance(value, (bool, np.bool_)) else value)
    numbers: NDArray[np.float64] = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return numbers
