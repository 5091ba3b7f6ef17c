"""The sections of a report after its beginning: cells, charts with their tables, trainings, exports, configuration."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nasengine.drawing import figure, text
from nasengine.evidence import Plain
from nasengine.findings import Finding, flat, graphs_of, measure_of, number, shown
from nasengine.markup import Html, copy_button, details, element, joined, markup, table


def section(name: str, title: str, *parts: object) -> Html:
    """A part of the page with a heading that the contents lead to."""
    heading = element("h2", title, {"id": f"{name}-title"})
    return element("section", joined([heading, *parts]), {"id": name, "aria-labelledby": f"{name}-title"})


def chart(kind: str, label: str, place: int = 0) -> Html:
    """A place where the script draws the chart `kind` of the data with that number."""
    attributes = {"class": "chart", "data-chart": kind, "data-of": place, "role": "img", "aria-label": label}
    return element("div", element("noscript", "This chart needs JavaScript."), attributes)


# Cells


def cells(findings: Sequence[Finding], winner: str = "") -> Html:
    """The cells of runs, each architecture once, as pictures and as text: the winner's first, what is trained folded.

    Args:
        findings: searches and trainings, in the order of their importance.
        winner: the name of the run whose cells come first.
    """
    drawn: dict[str, Html] = {}
    first: dict[str, None] = {}
    for finding in sorted(findings, key=lambda run: run.name != winner):
        found = graphs_of(finding)
        if found is not None and found[1] not in drawn:
            drawn[found[1]] = _cell(finding, _said(finding, finding.name == winner), *found, len(drawn))
            if finding.verb == "search" or finding.name == winner or not first:
                first[found[1]] = None
    if not drawn:
        return Html("")
    others = [picture for text_, picture in drawn.items() if text_ not in first]
    more = [details(f"{len(others)} more that were trained", joined(others))] if others else []
    return section("cells", "Architectures" if len(drawn) > 1 else "Architecture", *(drawn[t] for t in first), *more)


def _said(finding: Finding, won: bool) -> str:
    if not finding.finished:
        return "So far in"
    found = "Found by" if finding.verb == "search" else "Trained in"
    return f"The winner, {found.lower()}" if won else found


def _cell(finding: Finding, said: str, graphs: Mapping[str, Any], written: str, place: int) -> Html:
    words = text(graphs)
    picture = element("div", inline_svg(graphs, f"cell{place}-", words), {"class": "picture"})
    caption = element("figcaption", joined([f"{said} {finding.name} ", copy_button(written, "copy genotype")]))
    spelled = element("pre", words, {"tabindex": "0"})
    unfolded = details("as text", joined([spelled, element("p", element("code", written), {"class": "long"})]))
    return element("figure", joined([picture, caption, unfolded]))


def inline_svg(graphs: Mapping[str, Any], prefix: str, label: str) -> Html:
    """The drawing of cells as an SVG element whose ids begin with `prefix` and that styles nothing but itself."""
    from matplotlib import style

    content = io.StringIO()
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "nasengine"}]):
        figure(graphs).savefig(content, format="svg", metadata={"Date": None})
    drawn = content.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\bid="', f'id="{prefix}', drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", drawn)
    title = " ".join(label.split()).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return Html(drawn.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))


# Charts with their tables


def curves_section(curves: Sequence[Plain]) -> Html:
    """Loss, measure and any other column against epochs or seconds; searches, then trainings."""
    if not curves:
        return Html("")
    groups = [(verb, title) for verb, title in (("search", "Search"), ("train", "Final training"))]
    parts: list[object] = [switch("x", {"epochs": "epochs", "seconds": "seconds"}, "Horizontal axis")]
    for verb, title in groups:
        if any(curve["verb"] == verb for curve in curves):
            label = f"{title}: loss and measure by epochs or seconds"
            parts += [element("h3", title), chart(f"curves-{verb}", label)]
    note = (
        "Validation data choose the architecture in a search, so that their score is no held-out number; "
        "the test set has no part in any curve."
    )
    return section("curves", "Curves", *parts, element("p", note, {"class": "note"}))


def weights_section(weights: Sequence[Plain]) -> Html:
    """How the weights over the options of each choice moved: a map of all, and one choice in lines."""
    if not weights:
        return Html("")
    parts: list[object] = []
    for place, run in enumerate(weights):
        options = joined(element("option", label, {"value": label}) for label in run["choices"])
        select = element("select", options, {"id": f"choice-{place}", "class": "choice", "data-of": place})
        label = element("label", joined(["Choice ", select]))
        name = [element("h3", run["run"])] if len(weights) > 1 else []
        both = joined(
            [chart("weights-map", f"{run['run']}: the largest weight of every choice by epoch", place), label]
        )
        parts += [*name, both, chart("weights", f"{run['run']}: the weights of one choice by epoch", place)]
    note = (
        "The map shows the largest weight of every choice: pale where all options weigh alike, one where it is "
        "decided. Click a row, or choose below, "
        "to see all options of a choice."
    )
    return section("weights", "Weights of the choices", element("p", note), *parts)


def switch(name: str, options: Mapping[str, str], legend: str) -> Html:
    """Buttons of which one is pressed."""
    choices = []
    for place, (value, words) in enumerate(options.items()):
        given = {"type": "radio", "name": name, "value": value, "checked": place == 0}
        choices.append(element("label", joined([Html(element("input", "", given).removesuffix("</input>")), words])))
    return element("fieldset", joined([element("legend", legend), *choices]), {"class": "switch"})


# Tables


def labels_section(finding: Finding) -> Html:
    """The labels of a collection: how they are spread."""
    scores = [value for row in finding.tables["labels"] if (value := number(row.get("score"))) is not None]
    if not scores:
        return Html("")
    told = {"labels": len(scores), "best": max(scores), "median": statistics.median(scores), "worst": min(scores)}
    rows = [[name, f"{value:.4g}"] for name, value in told.items()]
    return section(
        "labels", "Labels", chart("labels", f"{finding.name}: scores of the labels"), table(["", "score"], rows)
    )


def trainings_section(findings: Sequence[Finding]) -> Html:
    """The final trainings, one a row, and mean and deviation of those of one architecture."""
    runs = [run for finding in findings for run in finding.all() if run.verb == "train"]
    if not runs:
        return Html("")
    measure = next((measure_of(run.result) for run in runs if run.result), "accuracy")
    parts = [part for part in ("valid", "test") if any(f"{part}_{measure}" in run.result for run in runs)] or ["test"]
    winners = {
        str(finding.path / str(run.result["winner"]))
        for finding in findings
        for run in finding.all()
        if "winner" in run.result
    }
    scores: dict[str, list[float]] = {}
    rows = []
    for run in runs:
        found = {part: number(run.result.get(f"{part}_{measure}")) for part in parts}
        score = found[parts[0]]
        if score is not None:
            scores.setdefault(run.config["architecture"], []).append(score)
        seed, epochs = run.config["train"].get("seed"), run.config["train"].get("epochs")
        size = number(run.result.get("parameters"))
        status = "winner" if str(run.path) in winners else run.record["status"]
        row = [run.name, status, seed, epochs, *(shown(measure, value) for value in found.values())]
        rows.append([*row, "" if size is None else f"{int(size):,}", f"{number(run.record.get('seconds')) or 0:,.1f}"])
    words = {"valid": "validation", "test": "test"}
    named = [f"{words[part]} {measure.replace('_', ' ')}" for part in parts]
    heads = ["run", "status", "seed", "epochs", *named, "parameters", "seconds"]
    several = [of_one for of_one in scores.values() if len(of_one) > 1]
    spreads = [
        f"{shown(measure, statistics.fmean(of_one))} ± {shown(measure, statistics.stdev(of_one))} (n = {len(of_one)})"
        for of_one in several
    ]
    note = (
        [element("p", f"Mean ± deviation of {named[0]} over the seeds of one architecture: {'; '.join(spreads)}.")]
        if spreads
        else []
    )
    return section("trainings", "Final trainings", table(heads, rows, "Final trainings"), *note)


def exports_section(findings: Sequence[Finding]) -> Html:
    """The exported files, and how far they are from the network."""
    parts: list[object] = []
    for run in (run for finding in findings for run in finding.all() if run.export):
        files = run.export.get("files", {})
        pairs = files.items() if isinstance(files, dict) else enumerate(files) if isinstance(files, list) else ()
        known = [
            {"format": str(key), **(value if isinstance(value, dict) else {"file": value})} for key, value in pairs
        ]
        names = list(
            dict.fromkeys(
                name for entry in known for name, value in entry.items() if not isinstance(value, dict | list)
            )
        )
        rows = [[_plain(entry.get(name, "")) for name in names] for entry in known]
        others = [(name, value) for name, value in flat(run.export) if not name.startswith("files")]
        parts.append(table([name.replace("_", " ") for name in names], rows, f"Exported from {run.name}"))
        parts.append(details("more about the export", table(["", "value"], [[n, _plain(v)] for n, v in others])))
    return section("exports", "Exports", *parts) if parts else Html("")


def configuration_section(findings: Sequence[Finding]) -> Html:
    """Every value of every configuration, folded."""
    parts = []
    for run in (run for finding in findings for run in finding.all()):
        about = {key: run.record.get(key) for key in ("verb", "status", "id", "facts", "versions", "git", "device")}
        rows = [[name, _plain(value)] for name, value in (*flat(run.config), *flat(about)) if value is not None]
        summary = joined([markup(run.name), " ", element("small", f"nasengine {run.verb}")])
        parts.append(details(summary, table(["setting", "value"], rows)))
    return section("configuration", "Configuration", *parts)


def _plain(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text_ = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return element("code", text_) if len(text_) > 24 else text_
