"""What is published of a space's architectures, converted once and looked up: the verbs of `nasengine benchmark`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nasengine.architecture import Architecture
from nasengine.config import AnySpace, resolve_space
from nasengine.errors import SettingError
from nasengine.space import Progress, Space


@dataclass(frozen=True)
class Known:
    """What a table has of one architecture.

    Attributes:
        architecture: it.
        text: in the form that other tools exchange.
        hash: under which the architecture is published.
        parameters: of its network.
        epochs: for which it was trained.
        repeat: which training, counted from 1, or the mean of all.
        evaluations: measures by when they were taken, the last at the end; accuracies are shares, times seconds.
    """

    architecture: Architecture
    text: str
    hash: str
    parameters: int
    epochs: int
    repeat: int | Literal["mean"]
    evaluations: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Best:
    """The architecture with the best mean of a measure, after the largest budget."""

    value: float
    text: str
    hash: str


@dataclass(frozen=True)
class Info:
    """What a table is.

    Attributes:
        path: the file.
        size: its bytes.
        source: the name of the file that was converted, with its bytes and its SHA-256.
        published: what is known of a source with this SHA-256, empty if nothing.
        architectures: how many it has.
        of: how many the space has.
        trainings: how many records.
        epochs: the budgets, ascending.
        repeats: trainings of an architecture and budget.
        best: by measure.
    """

    path: Path
    size: int
    source: str
    source_size: int
    sha256: str
    published: str
    architectures: int
    of: int
    trainings: int
    epochs: tuple[int, ...]
    repeats: int
    best: Mapping[str, Best]


class Results(Protocol):
    """An open table, see `Space.results`."""

    def find(self, hash: str) -> Architecture:
        """The architecture of a published hash. Raises DataError."""
        ...

    def look_up(self, architecture: Architecture, epochs: int | None, repeat: int | Literal["mean"]) -> Known:
        """What is known; the largest budget if none is given. Raises DataError or SettingError."""
        ...

    def info(self) -> Info:
        """What the table is."""
        ...


def convert(source: Path | str, out: Path | str, *, space: AnySpace, progress: Progress | None = None) -> Info:
    """Makes a small table that opens at once of the published file of a space.

    Args:
        source: the published file.
        out: the table to write; it is whole or not there.
        space: a name, a class or an instance.
        progress: is called with (bytes done, bytes in all).

    Raises:
        DataError: the source is missing, damaged or another file; the table cannot be written.
        SettingError: the space has no published file.
    """
    resolved = _space(space)
    resolved.convert_results(Path(source), Path(out), progress)
    return resolved.results(Path(out)).info()


def query(
    table: Path | str,
    *,
    space: AnySpace,
    genotype: str | None = None,
    hash: str | None = None,
    epochs: int | None = None,
    repeat: int | str = "mean",
) -> Known:
    """What a converted table has of the architecture of a text, or of a published hash: one of the two.

    Args:
        table: the file.
        space: a name, a class or an instance.
        genotype: any text that the space reads.
        hash: under which the architecture is published.
        epochs: the budget; the largest one of the table if left out.
        repeat: which training, counted from 1, or "mean".

    Raises:
        ArchitectureError: the text is none of the space.
        DataError: the table is missing, damaged or another file, or has not the architecture.
        SettingError: the table has not the budget or the repeat.
    """
    resolved = _space(space)
    if (genotype is None) == (hash is None):
        raise SettingError("An architecture to look up must be given by one of a genotype and a hash, and not by both.")
    results = resolved.results(Path(table))
    architecture = resolved.read(genotype) if genotype is not None else results.find(hash or "")
    return results.look_up(architecture, epochs, _repeat(repeat))


def info(table: Path | str, *, space: AnySpace) -> Info:
    """What a converted table is, and the best that it has. Raises as `query` does."""
    return _space(space).results(Path(table)).info()


def _space(space: AnySpace) -> Space:
    return resolve_space(space, {}, {})


def _repeat(repeat: int | str) -> int | Literal["mean"]:
    if repeat == "mean":
        return "mean"
    try:
        return int(repeat)
    except ValueError:
        raise SettingError(f"A repeat must be 'mean' or a number from 1, but got {repeat!r}.") from None
