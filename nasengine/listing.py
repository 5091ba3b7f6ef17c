"""What there is, and what a run found: the `list` and `show` verbs."""

from __future__ import annotations

import builtins
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import networkx as nx

from nasengine.architecture import Architecture
from nasengine.config import (
    AnySpace,
    CollectSettings,
    CompareSettings,
    FrontSettings,
    ProposeSettings,
    RankSettings,
    RunSettings,
    SearchSettings,
    TrainSettings,
    resolve_space,
)
from nasengine.data import SCHEMES
from nasengine.drawing import draw
from nasengine.errors import ArchitectureError, NasengineError, RunError
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.run_directory import HISTORY, read_record, saving
from nasengine.settings import Setting, plain, table
from nasengine.space import Space
from nasengine.task import DataSettings

_TABLES: Final = {"collect": "labels.csv", "rank": "ranking.csv", "front": "front.csv"}


@dataclass(frozen=True)
class Entry:
    """One thing that `list` names: its kind, name, one line about it, and its settings."""

    kind: str
    name: str
    summary: str
    settings: tuple[Setting, ...]


def list() -> builtins.list[Entry]:
    """Spaces, algorithms, predictors, data schemes, and the settings of the verbs."""
    from nasengine.predictor import PREDICTORS  # scikit-learn takes a second, and the other verbs need none of it

    entries = [_plugin("space", name, SPACES[name], "space") for name in SPACES.names()]
    entries += [_plugin("algorithm", name, ALGORITHMS[name], "algo") for name in ALGORITHMS.names()]
    entries += [_plugin("predictor", name, PREDICTORS[name], "predictor") for name in PREDICTORS.names()]
    entries += [Entry("data", scheme.name, scheme.summary, ()) for scheme in SCHEMES.values()]
    groups = {"data": DataSettings, "search": SearchSettings, "train": TrainSettings}
    groups |= {"collect": CollectSettings, "propose": ProposeSettings, "rank": RankSettings, "run": RunSettings}
    for prefix, kind in {**groups, "compare": CompareSettings, "front": FrontSettings}.items():
        entries.append(_plugin("settings", prefix, kind, prefix))
    return [*entries, _final()]


def _final() -> Entry:
    """The settings of the network to train, with the defaults that differ from those of the network of a search."""
    summary = "The network that is trained in the end, for which limits hold: all settings of the space; by default:"
    rows = []
    for name in SPACES.names():
        try:
            space = SPACES[name]()
        except TypeError:  # one with settings that must be given
            continue
        usual, final = plain(space), plain(space.final())
        for row in table(SPACES[name], "final"):
            field = row.name.removeprefix("final.")
            if final[field] != usual[field]:
                rows.append(row._replace(default=final[field], help=f"{name}: {row.help}"))
    return Entry("settings", "final", summary, tuple(rows))


def _plugin(kind: str, name: str, plugin: type, prefix: str) -> Entry:
    summary = (plugin.__doc__ or "").strip().splitlines()[0]
    return Entry(kind, name, summary, tuple(table(plugin, prefix)))


@dataclass(frozen=True)
class Shown:
    """What `show` found.

    Attributes:
        architecture: the one found, or the last one of a search that goes on.
        text: in the form that other tools exchange.
        graphs: by name, for drawing.
        record: run.json, or None for a genotype.
        files: pictures that were written.
    """

    architecture: Architecture
    text: str
    graphs: dict[str, nx.DiGraph[str]]
    record: dict[str, Any] | None
    files: tuple[Path, ...]


def show(
    run: Path | str | None = None,
    *,
    genotype: str | None = None,
    space: AnySpace | None = None,
    out: Path | str | None = None,
) -> Shown:
    """The architecture of a run directory, or of a genotype text; draws it to `out` (.svg or .png) when given."""
    if (run is None) == (genotype is None):
        raise RunError("Either a run directory or a genotype must be given to show, and not both.")
    record = read_record(Path(run)) if run is not None else None
    if record is not None and record["verb"] in _TABLES:
        raise RunError(
            f"A run to show must be a search or a training, but the one in {run} is of 'nasengine {record['verb']}', "
            f"which finds no architecture; open its {_TABLES[record['verb']]}."
        )
    resolved = resolve_space(space, record["config"]["space"] if record else {"name": "darts"}, {})
    found = resolved.read(genotype) if genotype is not None else None
    architecture = found or _found(resolved, record or {}, Path(run or "."))
    try:
        graphs, text = resolved.graphs(architecture), resolved.write(architecture)
    except NasengineError:
        raise
    except (LookupError, ValueError) as error:
        raise ArchitectureError(
            f"An architecture to show must be one of space {resolved.name!r}, but got {str(architecture)!r}; name its "
            "space by --space."
        ) from error
    if out is not None:
        with saving(Path(out)):
            draw(graphs, Path(out))
    files = (Path(out),) if out is not None else ()
    return Shown(architecture, text, graphs, record, files)


def _found(space: Space, record: dict[str, Any], run: Path) -> Architecture:
    text = record.get("result", {}).get("architecture") or record["config"].get("architecture")
    if text:
        return Architecture.parse(text)
    try:
        with (run / HISTORY).open(encoding="utf-8", newline="") as file:
            rows = builtins.list(csv.DictReader(file))
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError, csv.Error):
        raise RunError(f"{run / HISTORY} must be the readable history of a search, but is not.") from None
    if not rows:
        raise RunError(
            f"A run must have ended its first epoch to be shown, but the one in {run} has not; wait or resume it."
        )
    return space.read(rows[-1].get("architecture") or "")
