"""Reports: one HTML file of what runs found, which holds all that it shows and needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from nasengine import report_headline as beginning
from nasengine import report_sections as sections
from nasengine.errors import RunError
from nasengine.evidence import candidates, curves, fronts, learning, weights
from nasengine.findings import Finding, number, read_findings
from nasengine.markup import Html, element, joined, json_text, markup
from nasengine.report_candidates import candidates_section, front_section
from nasengine.run_directory import replace_file

FILE: Final = "report.html"


def report(runs: Path | str | Sequence[Path | str], *, out: Path | str | None = None) -> Path:
    """Writes one HTML file of what runs found, and gives its path.

    It has what was found and by which data that is judged, the cells, curves, weights of choices, candidates, Pareto
    fronts, final trainings, exports, the configuration and the cost. Scripts and styles are inside, and the file
    forbids the browser all requests and all scripts but its own.

    Args:
        runs: run directories of any verb, finished or not; what they have not got is left out. Several are compared.
        out: the file; report.html in the run directory by default, or here where there are several runs.

    Raises:
        RunError: a directory is no run, or damaged, or none is given.
    """
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if not paths:
        raise RunError("A report must be of one run directory or more, but none is given; name one.")
    findings = read_findings(paths)
    file = Path(out) if out is not None else paths[0] / FILE if len(paths) == 1 else Path(FILE)
    if file.is_dir():
        raise RunError(f"The file of a report must be a file, but {file} is a directory; name a file by --out.")
    content = page(findings).encode()
    replace_file(file, lambda partial: partial.write_bytes(content))
    return file


def page(findings: Sequence[Finding]) -> str:
    """The whole page."""
    data, parts = _evidence(findings)
    runs = [run for finding in findings for run in finding.all()]
    with_cells = sorted((r for r in runs if r.verb in ("search", "train")), key=lambda run: run.verb != "search")
    body = [
        sections.cells(with_cells, _winner(findings)),
        *parts,
        sections.trainings_section(findings),
        sections.exports_section(findings),
        sections.section("cost", "Seconds", beginning.cost_bars(findings)),
        sections.configuration_section(findings),
    ]
    title = ", ".join(finding.name for finding in findings)
    scripts = {"library": _plotly(), "own": _asset("report.js")}
    return _filled(
        _asset("report.html"),
        {
            "policy": _policy(scripts.values()),
            "title": markup(f"{title} – nasengine report"),
            "style": Html(_asset("report.css")),
            "headline": beginning.headline(findings),
            "contents": _contents(body),
            "body": joined(body),
            "data": json_text(data),
            **{name: Html(text) for name, text in scripts.items()},
        },
    )


def _evidence(findings: Sequence[Finding]) -> tuple[dict[str, Any], list[Html]]:
    """The data of all charts, and the sections that hold these."""
    runs = [run for finding in findings for run in finding.all()]
    data: dict[str, Any] = {
        "curves": curves(runs),
        "weights": weights(runs),
        "candidates": [],
        "fronts": [],
        "labels": [],
    }
    parts = [sections.weights_section(data["weights"]), sections.curves_section(data["curves"])]
    for finding in findings:
        owners = [run for run in finding.all() if run.tables["candidates"] or run.tables["ranking"]]
        for owner in owners[:1]:
            points, curve = candidates(owner), learning(owner)
            parts.append(candidates_section(owner, points, curve, len(data["candidates"])))
            data["candidates"].append({"run": owner.name, "points": points, "learning": curve})
        for front in fronts(finding):
            data["fronts"].append(front)
            parts.append(front_section(front, len(data["fronts"]) - 1))
        if finding.verb == "collect":
            data["labels"] = [number(row.get("score")) for row in finding.tables["labels"]]
            parts.append(sections.labels_section(finding))
    return data, parts


def _winner(findings: Sequence[Finding]) -> str:
    """The name of the run that won a pipeline, if that is what the report is of."""
    named = [(run, run.path / str(run.result.get("winner", ""))) for run in findings if len(findings) == 1]
    return next((below.name for run, path in named for below in run.children if below.path == path), "")


def _contents(body: Sequence[Html]) -> Html:
    """Links to the sections."""
    links = []
    for part in filter(None, body):
        name = part.partition('id="')[2].partition('"')[0]
        title = part.partition("<h2")[2].partition(">")[2].partition("</h2>")[0]
        links.append(element("a", Html(title), {"href": f"#{name}"}))
    return joined(links)


def _filled(template: str, values: dict[str, Html]) -> str:
    """A template with its marks `[[name]]` replaced; what is put in is not looked at again."""
    parts = template.split("[[")
    filled = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition("]]")
        filled += [values[name], rest]
    return "".join(filled)


def _policy(scripts: Any) -> Html:
    """What the browser may do: run these scripts, and fetch nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return markup(f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}")


@cache
def _asset(name: str) -> str:
    return resources.files("nasengine").joinpath("assets", name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n")
