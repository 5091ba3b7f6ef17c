"""The sections of a report on candidates: what was guessed of them, and which are the best for what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from nasengine.evidence import Plain
from nasengine.findings import Finding
from nasengine.markup import Html, copy_button, details, element, joined, table
from nasengine.report_sections import chart, section, switch

_SHOWN, _MOST = 10, 200  # rows of candidates at once, and in all
_COSTS: Final = {"parameters": 1.0, "multiply_adds": 1.0, "latency": 1e3, "memory": 1e-6}
_COST_NAMES: Final = {"multiply_adds": "multiply-adds", "latency": "latency (ms)", "memory": "memory (MB)"}


def candidates_section(finding: Finding, points: Sequence[Plain], learning: Sequence[Plain], place: int) -> Html:
    """Candidates: what was guessed against what was measured and trained, how well they agree, the best in rows.

    Args:
        finding: whose candidates these are.
        points: of `nasengine.evidence.candidates`; `learning` is the learning curve of its predictor.
        place: the number of these candidates among those of the report.
    """
    if not points:
        return Html("")
    parts: list[object] = []
    pairs = [name for name in ("measured", "trained") if sum(_both(point, name) for point in points) > 0]
    if pairs:
        parts.append(chart("candidates", f"{finding.name}: predicted against measured scores", place))
        tables = [agreement(points, pairs), *_held_out(finding)]
        parts.append(element("div", joined(tables), {"class": "beside"}))
        if "measured" in pairs:
            note = (
                "Where the predictor was fitted to the measured scores, their agreement is not a test of it; the "
                "measures on labels held out and the final trainings are."
            )
            parts.append(element("p", note, {"class": "note"}))
    else:
        parts += _held_out(finding)
    if learning:
        parts += [
            chart("learning", "Kendall's tau on labels held out, by the number of labels", place),
            *_advice(finding),
        ]
    parts.append(candidate_table(points[:_SHOWN]))
    if len(points) > _SHOWN:
        rest = points[_SHOWN:_MOST]
        parts.append(details(f"{len(rest)} more of {len(points):,}", candidate_table(rest)))
    return section(f"candidates-{place}", "Candidates", *parts)


def _both(point: Plain, name: str) -> bool:
    return point["predicted"] is not None and point[name] is not None


def agreement(points: Sequence[Plain], pairs: Sequence[str]) -> Html:
    """Kendall's tau and the regret of the guesses, by measured and by trained scores."""
    from scipy import stats

    rows = []
    for name in pairs:
        known = [(point["predicted"], point[name]) for point in points if _both(point, name)]
        guessed, true = (np.array(side) for side in zip(*known, strict=True))
        told = len(known) > 2 and np.ptp(guessed) > 0 and np.ptp(true) > 0
        tau = float(stats.kendalltau(guessed, true).statistic) if told else math.nan
        regret = float(true.max() - true[guessed.argmax()])
        rows.append([name, len(known), f"{tau:.3f}" if told else "–", f"{regret:.4g}"])
    caption = "Agreement of guesses: Kendall's tau, and the best score less that of the best guess"
    return table(["scores", "candidates", "tau", "regret"], rows, caption)


def _held_out(finding: Finding) -> Iterator[Html]:
    """What rankings measured on labels that were held out."""
    for run in finding.all():
        measures = run.result.get("measures")
        if run.verb == "rank" and isinstance(measures, dict):
            names = [name.replace("_at_", "@").replace("_", " ") for name in measures]
            values = [_spread(found) for found in measures.values()]
            caption = (
                f"On labels held out, mean ± deviation of {run.result.get('draws')} draws (k = {run.result.get('k')})"
            )
            yield table(["measure", "value"], zip(names, values, strict=True), caption)


def _advice(finding: Finding) -> Iterator[Html]:
    yield from (element("p", run.result["advice"]) for run in finding.all() if run.result.get("advice"))


def _spread(found: Mapping[str, Any]) -> str:
    deviation = found.get("deviation")
    return f"{found['mean']:.3g}" + ("" if deviation is None else f" ± {deviation:.2g}")


def candidate_table(points: Sequence[Plain]) -> Html:
    """The best candidates, with a button each that copies what trains or exports it."""
    costs = [name for name in _COSTS if any(name in point["costs"] for point in points)]
    named = {"predicted": "predicted", "measured": "measured", "trained": "trained"}
    kept = [name for name in named if any(point[name] is not None for point in points)]
    sources = any(point["source"] for point in points)
    heads = [
        "rank",
        *(["source"] if sources else []),
        *kept,
        *(_cost_name(c) for c in costs),
        "copy",
        "architecture",
    ]
    rows = [
        [
            point["rank"],
            *([point["source"]] if sources else []),
            *(_scored(point, name) for name in kept),
            *(_cost(point, name) for name in costs),
            _command(point),
            element("code", point["text"]),
        ]
        for point in points
    ]
    return table(heads, rows, "Candidates by rank")


def _scored(point: Plain, name: str) -> str:
    if point[name] is None:
        return ""
    spread = point.get({"predicted": "uncertainty", "trained": "trained_deviation"}.get(name, ""))
    return f"{point[name]:.4g}" + ("" if spread is None else f" ± {spread:.2g}")


def _cost_name(name: str) -> str:
    return _COST_NAMES.get(name, name)


def _cost(point: Plain, name: str) -> str:
    value = point["costs"].get(name)
    return "" if value is None else f"{value * _COSTS[name]:,.4g}" if _COSTS[name] != 1 else f"{value:,.0f}"


def _command(point: Plain) -> Html:
    if not point["command"]:
        return Html("")
    return copy_button(point["command"], "export" if point["command"].startswith("nasengine export") else "train")


def front_section(front: Plain, place: int) -> Html:
    """A Pareto front: a chart whose points copy commands, and the same in rows."""
    options = {name: _cost_name(name) for name in front["costs"]}
    parts: list[object] = [switch(f"cost-{place}", options, "Cost")] if len(options) > 1 else []
    note = (
        "Of architectures on the line no other one has a better score for less. Click a point, or a button below, to "
        "copy the command that trains it, or exports it where it is trained."
    )
    note += " Hollow ones are on the front for another cost." if len(options) > 1 else ""
    which = "searched" if front["searched"] else "that of the candidates"
    parts += [element("p", f"{note} Scores: {front['score']}; the front is {which}.")]
    parts.append(chart("front", f"Pareto front of {front['run']}: score against cost", place))
    rows = [
        [
            row,
            _scored({**point, "predicted": point["score"]}, "predicted"),
            *(_cost(point, name) for name in options),
            _command(point),
            element("code", point["text"]),
        ]
        for row, point in enumerate(front["points"], start=1)
    ]
    heads = ["point", front["score"], *options.values(), "copy", "architecture"]
    parts.append(
        details(
            f"The {len(rows)} points in rows" if len(rows) > 1 else "The point in a row",
            table(heads, rows, "The front, as in the chart"),
        )
    )
    return section(f"front-{place}", "Pareto front", *parts)
