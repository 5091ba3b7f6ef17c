"""What run directories hold, as plain values: read from any verb, finished or not."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import networkx as nx

from nasengine.architecture import Architecture
from nasengine.config import resolve_space
from nasengine.errors import NasengineError, RunError
from nasengine.run_directory import HISTORY, RECORD, read_record
from nasengine.space import Space
from nasengine.tables import read_rows

Rows = list[dict[str, str]]

TABLES: Final = {
    "history": HISTORY,
    "alphas": "alphas.csv",
    "labels": "labels.csv",
    "ranking": "ranking.csv",
    "curve": "curve.csv",
    "front": "front.csv",
    "candidates": "candidates.csv",
}
_SEVERAL: Final = "final"
_CHILDREN: Final = ("search", "candidates", "scores", "ranking", _SEVERAL, "front")
_EXPORT: Final = ("export", "export.json")
_EVERYTHING, _MOST_LABELLED = "ranking.parquet", 2000
_PARTS: Final = ("test", "derived", "supernet", "valid", "train")


@dataclass(frozen=True, eq=False)
class Finding:
    """One run directory.

    Attributes:
        path: of the directory.
        name: what tells it from the others of a report.
        record: its run.json.
        tables: its CSV files by the names of `TABLES`, rows of texts; empty where there are none. After the best of a
            ranking come all others whose score is known.
        export: its export/export.json, empty where there is none.
        children: the runs below it.
    """

    path: Path
    name: str
    record: dict[str, Any]
    tables: dict[str, Rows]
    export: dict[str, Any]
    children: tuple[Finding, ...] = field(default=())

    @property
    def verb(self) -> str:
        """Of the command line, such as "search"."""
        return str(self.record["verb"])

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.record["status"] == "finished")

    @property
    def result(self) -> dict[str, Any]:
        """What it ended with; empty before."""
        return dict(self.record.get("result", {}))

    @property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return dict(self.record["config"])

    def all(self) -> Iterator[Finding]:
        """This run and all below it."""
        yield self
        for child in self.children:
            yield from child.all()


def read_findings(runs: Sequence[Path]) -> list[Finding]:
    """The runs in these directories. Raises RunError where one cannot be read."""
    names = distinct([path.resolve() for path in runs])
    return [_read(path, name, "" if len(runs) == 1 else f"{name}/") for path, name in zip(runs, names, strict=True)]


def distinct(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names if paths else []


def _read(path: Path, name: str, prefix: str) -> Finding:
    """A run; the names of those below it begin with `prefix`."""
    record = read_record(path)
    tables = {table: _table(path / file) for table, file in TABLES.items()}
    tables["ranking"] += _labelled(path / _EVERYTHING, len(tables["ranking"]))
    several = sorted((path / _SEVERAL).iterdir()) if (path / _SEVERAL).is_dir() else []
    found = [folder for folder in (*(path / child for child in _CHILDREN), *several) if (folder / RECORD).is_file()]
    named = [(child, f"{prefix}{child.relative_to(path)}") for child in found]
    children = tuple(_read(child, below, f"{below}/") for child, below in named)
    return Finding(path, name, record, tables, _export(path.joinpath(*_EXPORT)), children)


def _table(path: Path) -> Rows:
    try:
        return read_rows(path)
    except (OSError, ValueError, csv.Error):
        raise RunError(
            f"{path} must be a readable CSV file of a run, but is damaged; move it away to report without it."
        ) from None


def _labelled(path: Path, top: int) -> Rows:
    """The rows of all candidates after the first `top` whose true score is known."""
    import pandas as pd

    if not path.is_file():
        return []
    try:
        table = pd.read_parquet(path)
        known = table[(table["rank"] > top) & table["known"].notna()].iloc[:_MOST_LABELLED]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{path} must be a readable parquet file of a ranking, but is damaged; move it away to report without it."
        ) from None
    return [{str(name): str(value) for name, value in row.items()} for row in known.to_dict("records")]


def _export(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise RunError(f"{path} must be the JSON of an export, but is damaged; export again, or move it away.")
    return found


def number(text: object) -> float | None:
    """A finite number, or None."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers(rows: Rows, column: str) -> list[float | None]:
    """A column."""
    return [number(row.get(column, "")) for row in rows]


def measure_of(names: Iterable[str]) -> str:
    """The name of the measure by the columns or results that end in it; "accuracy" where there are none."""
    pairs = [name.split("_", 1) for name in names if "_" in name]
    return next(
        (rest for part, rest in pairs if part in _PARTS and rest not in ("loss", "size", "seconds")), "accuracy"
    )


def shown(measure: str, value: float | None, digits: int = 2) -> str:
    """A value of a measure: a share in per cent, any other number with 4 significant digits."""
    if value is None:
        return ""
    return f"{value:.{digits}%}" if measure.endswith("accuracy") and abs(value) <= 1 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def space_of(finding: Finding) -> Space | None:
    """The space of a run, None where its plug-in is not there."""
    try:
        return resolve_space(None, finding.config["space"], {})
    except (KeyError, TypeError, NasengineError):
        return None


def architecture_of(finding: Finding, space: Space) -> Architecture | None:
    """What a search found or last had, what a training trains, the winner of a pipeline; None where there is none."""
    texts = [finding.result.get("architecture"), finding.config.get("architecture")]
    texts += [finding.result.get("genotype"), *(row.get("architecture") for row in finding.tables["history"][-1:])]
    for text in filter(None, texts):
        for read in (Architecture.parse, space.read):
            try:
                found = read(str(text))
                space.graphs(found)
                return found
            except (NasengineError, LookupError, ValueError):
                continue
    return None


def graphs_of(finding: Finding) -> tuple[dict[str, nx.DiGraph[str]], str] | None:
    """The cells of a run and their text, None where it has none."""
    space = space_of(finding)
    architecture = architecture_of(finding, space) if space is not None else None
    if space is None or architecture is None:
        return None
    return space.graphs(architecture), space.write(architecture)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and plain values of nested mappings."""
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{dotted}.")
        else:
            yield dotted, value
