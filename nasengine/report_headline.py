"""The beginning of a report: what was found, how good it is by which data, and what it took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from nasengine.findings import Finding, duration, measure_of, number, shown
from nasengine.markup import Html, element, joined, markup, table
from nasengine.settings import in_seconds
from nasengine.wording import counted

_HONEST: Final = {
    "test": "on the test set, which was touched once, after the last step",
    "derived": "on the validation data, which chose the architecture: no held-out number; with inherited weights",
    "best_score": "on the validation data of the labels, each network trained from scratch; the best of them",
    "guess": "guessed by a predictor, not measured",
}
_NOUNS: Final = {
    "search": "Search",
    "train": "Training",
    "collect": "Labels",
    "rank": "Ranking",
    "front": "Pareto front",
    "run": "Pipeline",
    "propose": "Proposals",
}


def headline(findings: Sequence[Finding]) -> Html:
    """The heading of the page with the most telling number of one run, or the number of runs that are compared."""
    if len(findings) > 1:
        verbs = sorted({finding.verb for finding in findings})
        what = f"{len(findings)} {'searches' if verbs == ['search'] else 'runs'} compared"
        return joined([element("h1", what), comparison(findings)])
    (finding,) = findings
    value, honest, of = best_number(finding)
    title = [element("span", value, {"class": "big"}), " ", of] if value else [noun(finding)]
    parts: list[object] = [element("h1", joined(title))]
    if honest:
        parts.append(element("p", f"{honest[0].upper()}{honest[1:]}.", {"class": "honest"}))
    if not finding.finished:
        parts.append(element("p", unfinished(finding), {"class": "warning", "role": "status"}))
    return joined([*parts, facts(finding)])


def noun(finding: Finding) -> str:
    """What a run is, in words."""
    return _NOUNS.get(finding.verb, finding.verb)


def best_number(finding: Finding) -> tuple[str, str, str]:
    """The most telling number of a run, on what it was measured, and of what it is; empty texts where there is none."""
    trained = _trained(finding)
    if trained is not None:
        name = next(name for name in trained if name.startswith("test_") and name != "test_size")
        size = f" ({int(trained['test_size']):,} examples)" if "test_size" in trained else ""
        measure = name.removeprefix("test_")
        size += _over_seeds(finding, trained, name)
        value = shown(measure, number(trained[name]))
        return value, _HONEST["test"] + size, f"test {measure.replace('_', ' ')}{_on(finding)}"
    result, measure = finding.result, measure_of(finding.result)
    if f"derived_{measure}" in result:
        value = shown(measure, number(result[f"derived_{measure}"]))
        return value, _HONEST["derived"], f"validation {measure.replace('_', ' ')}{_on(finding)}"
    if "best_score" in result:
        return (
            f"{result['best_score']:.4g}",
            _HONEST["best_score"],
            f"best of {counted(result.get('labels', 0), 'label')}",
        )
    if finding.verb == "front" and "points" in result:
        return f"{result['points']}", _HONEST["guess"], f"architectures on the front, of {result['evaluated']:,}"
    if finding.verb == "rank" and "best" in result:
        return f"{result['best']:.4g}", _HONEST["guess"], f"best guess of {counted(result['candidates'], 'candidate')}"
    return "", "", ""


def _trained(finding: Finding) -> dict[str, Any] | None:
    """The result with the test score of a run or of its winner; of a lone training below a search, its result."""
    winner = finding.result.get("winner")
    runs = [finding, *(run for run in finding.all() if winner and run.path == finding.path / str(winner))]
    below = [run for run in finding.children if run.verb == "train" and run.finished]
    runs += below if finding.verb == "search" else []
    found = [run.result for run in runs if any(n.startswith("test_") and n != "test_size" for n in run.result)]
    return {**found[-1], **found[0]} if found else None


def _over_seeds(finding: Finding, trained: dict[str, Any], name: str) -> str:
    """Mean and deviation of the test scores of the same architecture from other seeds."""
    runs = [
        run for run in finding.all() if run.verb == "train" and run.result.get("genotype") == trained.get("genotype")
    ]
    scores = [value for run in runs if (value := number(run.result.get(name))) is not None]
    if len(scores) < 2:
        return ""
    measure, mean, spread = name.removeprefix("test_"), statistics.fmean(scores), statistics.stdev(scores)
    return f"; mean and deviation of {len(scores)} seeds: {shown(measure, mean)} ± {shown(measure, spread)}"


def _on(finding: Finding) -> str:
    data = next((r.config["data"].get("name") for r in finding.all() if isinstance(r.config.get("data"), dict)), None)
    return f" on {_short(str(data))}" if data else ""


def _short(source: str) -> str:
    """A data spec with the last part of its path only."""
    kind, colon, path = source.partition(":")
    return f"{kind}:{path.rpartition('/')[2]}" if colon else source.rpartition("/")[2]


def unfinished(finding: Finding) -> str:
    """What state a run is in that has not come to its end."""
    epochs = len(finding.tables["history"])
    total = finding.config.get(finding.verb, {}).get("epochs") if finding.verb in ("search", "train") else None
    after = f" after epoch {epochs} of {total}" if total else ""
    status = {"running": "is running, or was killed", "diverged": "diverged"}.get(str(finding.record["status"]))
    return f"{noun(finding)} {status or 'was interrupted'}{after}: this report shows what there is."


def facts(finding: Finding) -> Html:
    """The facts about a run that one asks for first."""
    pairs = element("dl", joined(element("div", joined(_pair(*pair))) for pair in _facts(finding)), {"class": "facts"})
    return pairs


def _pair(name: str, value: object) -> Iterator[Html]:
    yield element("dt", name)
    yield element("dd", value)


def _timing(finding: Finding) -> Iterator[tuple[str, object]]:
    """On what latencies were told, and how."""
    told = next((run.result for run in finding.all() if isinstance(run.result.get("latency_on"), dict)), None)
    if told is not None:
        machine = told["latency_on"]
        sizes = f"threads {machine.get('threads')}, batch size {machine.get('batch_size')}"
        yield "latency on", f"{machine.get('device')}, {machine.get('runtime')}, {sizes}"
        error = number(told.get("latency_table_error"))
        off = "" if error is None else f", which is off by {error:.1%}"
        table = told.get("latency_by") == "table"
        yield "latency by", f"the table of operations{off}" if table else f"measurements, not by the table{off}"


def _facts(finding: Finding) -> Iterator[tuple[str, object]]:
    result = {**finding.result, **(_trained(finding) or {})}
    spaces = [run.config["space"].get("name") for run in finding.all() if isinstance(run.config.get("space"), dict)]
    if spaces:
        yield "space", spaces[0]
    algorithms = [run.config["algo"].get("name") for run in finding.all() if isinstance(run.config.get("algo"), dict)]
    if algorithms:
        yield "algorithm", algorithms[0]
    for name, words in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
        if number(result.get(name)) is not None:
            yield words, f"{int(result[name]):,}"
    if number(result.get("latency")) is not None:
        yield "latency", in_seconds(float(result["latency"]))
    if number(result.get("latency_measured")) is not None:
        yield "latency, measured at the end", in_seconds(float(result["latency_measured"]))
    if number(result.get("memory")) is not None:
        yield "memory", f"{float(result['memory']) * 1e-6:.3g} MB"
    yield from _timing(finding)
    yield "took", duration(taken(finding))
    device = next((run.record["device"] for run in finding.all() if "device" in run.record), None)
    if device:
        yield "device", device
    yield "began", str(finding.record.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    yield "versions", ", ".join(f"{name} {version}" for name, version in finding.record.get("versions", {}).items())
    git = finding.record.get("git") or {}
    if git:
        changed = " and changes" if git.get("dirty") else ""
        yield "commit", joined([element("code", str(git.get("commit", ""))[:12]), changed])


def taken(finding: Finding) -> float:
    """Seconds of a run and of those below it that it does not count itself."""
    own = number(finding.record.get("seconds")) or 0.0
    return own if finding.verb == "run" and own else own + sum(taken(child) for child in finding.children)


def comparison(findings: Sequence[Finding]) -> Html:
    """A row a run: what it is, how it ended, its numbers."""
    parts: list[tuple[str, str]] = []
    for finding in findings:
        measure = measure_of(finding.result)
        parts += [(f"{part}_{measure}", measure) for part in ("supernet", "derived", "test")]
    columns = [pair for pair in dict.fromkeys(parts) if any(pair[0] in _numbers(f) for f in findings)]
    words = {"supernet": "supernet, validation", "derived": "cell, validation", "test": "test"}
    heads = [f"{words[n.partition('_')[0]]} {measure.replace('_', ' ')}" for n, measure in columns]
    rows = []
    for finding in findings:
        values = _numbers(finding)
        shown_ = [shown(measure, number(values.get(name))) for name, measure in columns]
        parameters = number(values.get("parameters"))
        size = "" if parameters is None else f"{int(parameters):,}"
        seconds = f"{taken(finding):,.0f}"
        rows.append([finding.name, _how(finding), finding.record["status"], *shown_, size, seconds])
    return table(["run", "of", "status", *heads, "parameters", "seconds"], rows, "The runs of this report")


def _numbers(finding: Finding) -> dict[str, Any]:
    return {**finding.result, **(_trained(finding) or {})}


def _how(finding: Finding) -> str:
    parts = [finding.config.get(part) for part in ("space", "algo")]
    names = [part.get("name") for part in parts if isinstance(part, dict)]
    return f"{noun(finding).lower()}: {', '.join(filter(None, names))}" if any(names) else noun(finding).lower()


def stage_seconds(findings: Iterable[Finding]) -> list[tuple[str, float]]:
    """Seconds by stage: those of a pipeline, else of every run."""
    stages: list[tuple[str, float]] = []
    for finding in findings:
        told = finding.result.get("stages")
        if isinstance(told, dict):
            stages += [(str(name), number(seconds) or 0.0) for name, seconds in told.items()]
        else:
            stages += [
                (run.name, number(run.record.get("seconds")) or 0.0) for run in finding.all() if run.verb != "run"
            ]
    return stages


def cost_bars(findings: Iterable[Finding]) -> Html:
    """Seconds by stage, as bars."""
    stages = stage_seconds(findings)
    total, most = sum(s for _, s in stages), max((s for _, s in stages), default=0.0)
    rows = []
    for name, seconds in stages:
        share = seconds / most if most else 0.0
        bar = element("span", "", {"class": "bar", "style": f"width:{100 * share:.1f}%"})
        part = f"{seconds / total:.0%}" if total else ""
        rows.append([name, f"{seconds:,.1f}", part, Html(f'<span class="track" aria-hidden="true">{bar}</span>')])
    whole = element("p", joined(["In all ", markup(duration(total)), "."]))
    return joined([table(["stage", "seconds", "share", ""], rows, "Seconds by stage"), whole])
