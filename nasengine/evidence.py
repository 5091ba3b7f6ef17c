"""What the charts of a report show, as plain values for JSON: curves, weights of choices, candidates, fronts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from nasengine.architecture import Architecture
from nasengine.commands import training_command
from nasengine.errors import NasengineError
from nasengine.findings import Finding, Rows, measure_of, number, numbers, space_of
from nasengine.pareto import non_dominated
from nasengine.pricing import COSTS
from nasengine.space import Space

Plain = dict[str, Any]

_TEXTS: Final = ("architecture", "genotype")
_MOST_POINTS: Final = 5000
_PREDICTED, _MEASURED, _TRAINED = "predicted", "measured", "trained"


def curves(findings: Iterable[Finding]) -> list[Plain]:
    """The histories of searches and trainings: epochs, seconds, and all columns of numbers."""
    found = []
    for finding in findings:
        rows = finding.tables["history"]
        if rows and finding.verb in ("search", "train"):
            names = [name for name in rows[0] if name not in ("epoch", "seconds", "seconds_in_steps", *_TEXTS)]
            series = {name: numbers(rows, name) for name in names}
            about = {"run": finding.name, "verb": finding.verb, "measure": measure_of(rows[0])}
            times = {"epochs": numbers(rows, "epoch"), "seconds": numbers(rows, "seconds")}
            found.append(
                {**about, **times, "series": {n: s for n, s in series.items() if any(v is not None for v in s)}}
            )
    return found


def weights(findings: Iterable[Finding]) -> list[Plain]:
    """The weights of the choices of searches after every epoch: per choice its options and a row an epoch."""
    found = []
    for finding in findings:
        rows = finding.tables["alphas"]
        choices: dict[str, Plain] = {}
        for name in rows[0] if rows else ():
            label, equals, option = name.rpartition("=")
            if equals:
                choice = choices.setdefault(label, {"options": [], "weights": []})
                choice["options"].append(option)
                choice["weights"].append(numbers(rows, name))
        if choices:
            found.append({"run": finding.name, "epochs": numbers(rows, "epoch"), "choices": choices})
    return found


def candidates(finding: Finding) -> list[Plain]:
    """The candidates of a pipeline, or the best of a ranking: what is guessed, measured and trained of each."""
    rows, known = finding.tables["candidates"], {}
    if not rows and finding.verb == "rank":
        known = {"score": _PREDICTED, "known": _MEASURED}
        rows = finding.tables["ranking"]
    texts, configuration = _texts(finding, rows), _configuration(finding)
    return [
        _candidate({known.get(name, name): value for name, value in row.items()}, text, place, finding, configuration)
        for place, (row, text) in enumerate(zip(rows, texts, strict=True), start=1)
    ]


def _candidate(row: Mapping[str, str], text: str, place: int, finding: Finding, configuration: Plain) -> Plain:
    names = (_PREDICTED, "uncertainty", _MEASURED, _TRAINED, "trained_deviation")
    rank = int(number(row.get("rank")) or place)
    return {
        **{name: number(row.get(name, "")) for name in names},
        "rank": rank,
        "source": row.get("source", ""),
        "text": text,
        "costs": _costs(row),
        "command": _command(finding, configuration, text, rank),
    }


def _command(finding: Finding, configuration: Plain, text: str, rank: int) -> str:
    """What exports a candidate that is trained, and trains another one."""
    prefix = f"{rank}-seed-"
    trained = [run for run in finding.children if run.verb == "train" and run.path.name.startswith(prefix)]
    done = [run for run in trained if run.finished]
    if done:
        return f"nasengine export {shlex.quote(str(done[0].path))}"
    return training_command(configuration, text) if configuration else ""


def _configuration(finding: Finding) -> Plain:
    """Space, data and settings with which candidates are trained: those of the final trainings, where there are any."""
    runs = sorted(finding.all(), key=lambda run: run.verb != "train")
    chosen = next((run.config for run in runs if isinstance(run.config.get("space"), dict)), {})
    data: Plain = next((run.config["data"] for run in runs if isinstance(run.config.get("data"), dict)), {})
    return {"data": data, **chosen} if chosen else {}


def learning(finding: Finding) -> list[Plain]:
    """Kendall's tau on labels held out, by how many others a predictor was fitted to: a point a fit."""
    rows = next((run.tables["curve"] for run in finding.all() if run.tables["curve"]), [])
    found = [{"labels": number(row.get("labels")), "tau": number(row.get("kendall_tau"))} for row in rows]
    return [point for point in found if None not in point.values()]


def fronts(finding: Finding) -> list[Plain]:
    """The Pareto front that was searched, in a run or below it, else that of its candidates; one, or none.

    A point is on the edge for a cost if no other one has a better score for less of it.
    """
    known = next((found for run in finding.all() if run.tables["candidates"] and (found := candidates(run))), [])
    rows = next((run.tables["front"] for run in finding.all() if run.tables["front"]), [])
    if not rows:
        return _front_of(finding, known or (candidates(finding) if finding.verb == "rank" else []))
    texts, configuration = _texts(finding, rows), _configuration(finding)
    ranks = {point["text"]: point["rank"] for point in known}
    points = [
        {
            "score": number(row.get("score", row.get(_PREDICTED, ""))),
            "uncertainty": number(row.get("uncertainty", "")),
            "text": text,
            "costs": _costs(row),
            "command": _command(finding, configuration, text, ranks.get(text, 0)),
        }
        for row, text in zip(rows, texts, strict=True)
    ]
    found = _front(finding, points, _cloud(known, _PREDICTED), "guessed score", whole=True)
    return [{**front, "searched": "score" in rows[0]} for front in found]


def _front_of(finding: Finding, known: Sequence[Plain]) -> list[Plain]:
    """The front of candidates by what is guessed of them, else by what was measured."""
    name = next((n for n in (_PREDICTED, _MEASURED) if sum(point[n] is not None for point in known) > 1), "")
    heading = {_PREDICTED: "guessed score", _MEASURED: "measured score"}.get(name, "")
    return _front(finding, _cloud(known, name), [], heading, whole=False) if name else []


def _cloud(known: Sequence[Plain], name: str) -> list[Plain]:
    kept = [point for point in known if point[name] is not None][:_MOST_POINTS]
    return [
        {**{n: point[n] for n in ("uncertainty", "text", "costs", "command")}, "score": point[name]} for point in kept
    ]


def _front(finding: Finding, points: Sequence[Plain], cloud: Sequence[Plain], heading: str, whole: bool) -> list[Plain]:
    """One front for all costs that all points have, nothing where there is none; `whole` if all points are of it."""
    points = [point for point in points if point["score"] is not None]
    costs = [name for name in COSTS if points and all(name in point["costs"] for point in points)]
    edges = {name: _edge(points, name) for name in costs}
    kept = sorted({row for edge in edges.values() for row in edge}) if not whole else range(len(points))
    place = {row: new for new, row in enumerate(kept)}
    rest = [point for row, point in enumerate(points) if row not in place]
    others = [point for point in (*rest, *cloud) if all(name in point["costs"] for name in costs)]
    if not costs:
        return []
    return [
        {
            "run": finding.name,
            "score": heading,
            "searched": whole,
            "costs": costs,
            "points": [points[row] for row in kept],
            "cloud": others,
            "edges": {name: [place[row] for row in edge] for name, edge in edges.items()},
        }
    ]


def _edge(points: Sequence[Plain], cost: str) -> list[int]:
    """The rows of the front for one cost, the cheapest first."""
    values = np.array([[-point["score"], point["costs"][cost]] for point in points])
    rows = np.flatnonzero(non_dominated(values))
    return [int(row) for row in rows[np.argsort(values[rows, 1], kind="stable")]]


def _costs(row: Mapping[str, str]) -> dict[str, float]:
    found = {name: number(row.get(name, "")) for name in COSTS}
    return {name: value for name, value in found.items() if value is not None}


def _texts(finding: Finding, rows: Rows) -> list[str]:
    """The architectures of the rows of a table, in the text form of their space where it is there."""
    import pandas as pd

    space = next((s for s in (space_of(run) for run in finding.all() if "space" in run.config) if s is not None), None)
    if space is None or not rows:
        return [row.get("architecture", "") for row in rows]
    try:
        return [space.write(found) for found in space.from_table(pd.DataFrame(rows, dtype=str))]
    except (NasengineError, LookupError, ValueError):
        return [_written(space, row.get("architecture", "")) for row in rows]


def _written(space: Space, text: str) -> str:
    try:
        return space.write(Architecture.parse(text))
    except (NasengineError, LookupError, ValueError):
        return text
