"""What a comparison found: one table of all searches, their curves, and which differences seeds cannot explain."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nasengine.compare_plan import ComparePlan, Contender
from nasengine.run_directory import HISTORY, read_record
from nasengine.workers import ended

if TYPE_CHECKING:
    import pandas as pd

FINAL: Final = "final"
CONFIDENCE: Final = 0.95
_FEW, _OFF = 5, 0.1


@dataclass(frozen=True)
class Summary:
    """What came of one algorithm.

    Attributes:
        label: of the algorithm.
        scores: on the test set, one a seed whose search and training did not diverge.
        seconds: of its searches, the mean.
        diverged: how many searches and trainings did.
    """

    label: str
    scores: tuple[float, ...]
    seconds: float
    diverged: int

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, None of fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Difference:
    """How much higher one algorithm scores than another: the difference of means and its interval.

    Attributes:
        low, high: ends of the interval of Welch's t; all intervals of a comparison hold together with a probability of
            95 % (Bonferroni). None where seeds are too few, or do not differ.
    """

    one: str
    other: str
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def told(self) -> bool:
        """Whether it is more than seeds alone make."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def search_directory(path: Path, contender: Contender, seed: int) -> Path:
    """Where a search of the comparison in `path` is; its training is in final/ below."""
    return path / contender.folder / f"seed-{seed}"


def result_table(plan: ComparePlan, path: Path) -> pd.DataFrame:
    """One row a search, in the order of the algorithms and of the seeds; empty entries where something diverged.

    Returns:
        algorithm, seed, status, epochs, search_seconds (in all), search_seconds_in_steps, train_seconds,
        supernet_<measure> and derived_<measure> (of validation, with shared weights), test_<measure>, parameters,
        multiply_adds, architecture, genotype.
    """
    import pandas as pd

    rows = [_row(plan, path, contender, seed) for contender in plan.contenders for seed in plan.seeds]
    counts = {"parameters": "Int64", "multiply_adds": "Int64"}
    return pd.DataFrame(rows).astype(counts)


def _row(plan: ComparePlan, path: Path, contender: Contender, seed: int) -> dict[str, Any]:
    directory, measure = search_directory(path, contender, seed), plan.task.measure.name
    record = read_record(directory)
    search = record.get("result", {})
    whole = ended(directory / FINAL) if search else ""
    train = read_record(directory / FINAL)["result"] if whole == "finished" else {}
    status = "finished" if train else "training diverged" if search else "search diverged"
    return {
        "algorithm": contender.label,
        "seed": seed,
        "status": status,
        "epochs": record["config"]["search"]["epochs"],
        "search_seconds": search.get("seconds"),
        "search_seconds_in_steps": search.get("seconds_in_steps"),
        "train_seconds": train.get("seconds"),
        f"supernet_{measure}": search.get(f"supernet_{measure}"),
        f"derived_{measure}": search.get(f"derived_{measure}"),
        f"test_{measure}": train.get(f"test_{measure}"),
        "parameters": train.get("parameters"),
        "multiply_adds": train.get("multiply_adds"),
        "architecture": search.get("architecture"),
        "genotype": search.get("genotype"),
    }


def curve_table(plan: ComparePlan, path: Path) -> pd.DataFrame:
    """One row an epoch of every search, and one for its answer, where `at` is "end" in place of "epoch".

    Returns:
        algorithm, seed, at, epoch, seconds (from the start of the search), seconds_in_steps, supernet_<measure> and
        derived_<measure> (of validation, with shared weights).
    """
    import pandas as pd

    measure = plan.task.measure.name
    scores = ["seconds", "seconds_in_steps", f"supernet_{measure}", f"derived_{measure}"]
    parts = []
    for contender, seed in itertools.product(plan.contenders, plan.seeds):
        directory = search_directory(path, contender, seed)
        found = read_record(directory).get("result", {})
        rows = pd.read_csv(directory / HISTORY)[["epoch", *scores]] if (directory / HISTORY).exists() else None
        if rows is None:
            continue
        rows.insert(0, "at", "epoch")
        if found:
            last = {"at": "end", "epoch": rows["epoch"].max(), **{name: found[name] for name in scores}}
            rows = pd.concat([rows, pd.DataFrame([last])], ignore_index=True)
        rows.insert(0, "seed", seed)
        rows.insert(0, "algorithm", contender.label)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["algorithm", "seed", *scores])


def summaries(table: pd.DataFrame, measure: str) -> list[Summary]:
    """What came of every algorithm, in the order of the table."""
    found = []
    for label in dict.fromkeys(table["algorithm"]):
        rows = table[table["algorithm"] == label]
        scores = tuple(float(score) for score in rows[f"test_{measure}"].dropna())
        seconds = float(rows["search_seconds"].mean())
        found.append(Summary(str(label), scores, seconds, int((rows["status"] != "finished").sum())))
    return found


def differences(found: Sequence[Summary]) -> list[Difference]:
    """Of all pairs of algorithms that have scores: the later one less the earlier one."""
    pairs = list(itertools.combinations([summary for summary in found if summary.scores], 2))
    return [_difference(other, one, len(pairs)) for one, other in pairs]


def _difference(one: Summary, other: Summary, pairs: int) -> Difference:
    from scipy.stats import t

    mean = statistics.fmean(one.scores) - statistics.fmean(other.scores)
    if min(len(one.scores), len(other.scores)) < 2:
        return Difference(one.label, other.label, mean)
    parts = [statistics.variance(summary.scores) / len(summary.scores) for summary in (one, other)]
    if not sum(parts):
        return Difference(one.label, other.label, mean)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(summary.scores) - 1) for part, summary in zip(parts, (one, other), strict=True)
    )
    half = float(t.ppf(1 - (1 - CONFIDENCE) / (2 * pairs), freedom)) * sum(parts) ** 0.5
    return Difference(one.label, other.label, mean, mean - half, mean + half)


def shown(measure: str, value: float) -> str:
    """A score as it is told: a share in per cent, any other number as it is."""
    return f"{value:.2%}" if measure.endswith("accuracy") else f"{value:.4g}"


def _gap(measure: str, *values: float, sign: str = "+") -> str:
    """Differences of scores as they are told: of shares in points of a per cent."""
    share = measure.endswith("accuracy")
    texts = dict.fromkeys(f"{100 * value:{sign}.2f}" if share else f"{value:{sign}.4g}" for value in values)
    return " to ".join(texts) + (" points" if share else "")


def told(difference: Difference, measure: str) -> str:
    """A difference as a sentence."""
    start = f"{difference.one} less {difference.other}: {_gap(measure, difference.mean)}"
    if difference.low is None or difference.high is None:
        return f"{start}, of which a spread over seeds cannot be told."
    ends = _gap(measure, difference.low, difference.high)
    verdict = "more than seeds alone make" if difference.told else "not told apart by these seeds"
    return f"{start}, interval {ends}: {verdict}."


def advice(found: Sequence[Summary], apart: Sequence[Difference], measure: str) -> list[str]:
    """Sentences on what the differences are worth."""
    sentences = [told(difference, measure) for difference in apart]
    bounded = [difference for difference in apart if difference.low is not None and difference.high is not None]
    if bounded:
        sentences.insert(0, f"Intervals are Welch's, which hold together with a probability of {CONFIDENCE:.0%}.")
    if bounded and not any(difference.told for difference in bounded):
        sentences.append("No difference between algorithms exceeds what seeds alone make.")
    least = min((len(summary.scores) for summary in found), default=0)
    if bounded and least < _FEW:
        halves = [(float(d.high or 0) - float(d.low or 0)) / 2 for d in bounded]
        sentences.append(
            f"With n = {least} that is little evidence: here a difference must be above "
            f"{_gap(measure, min(halves), max(halves), sign='')} to be seen; more --seeds tell more."
        )
    elif not bounded and least < 2:
        sentences.append("With one seed nothing is known of the spread; --seeds 3 is the least that tells something.")
    sentences += [
        f"{summary.label} diverged with {summary.diverged} of its seeds, which are left out of its mean."
        for summary in found
        if summary.diverged
    ]
    return sentences


def on_budget(found: Sequence[Summary], budget: float, workers: int | str, cores: int) -> list[str]:
    """Sentences on how equal the cost was."""
    off = {summary.label: summary.seconds / budget - 1 for summary in found if summary.seconds == summary.seconds}
    sentences = [f"Seconds of a search against the budget of {budget:g} s: {_listed(off)}."] if off else []
    if any(abs(share) > _OFF for share in off.values()):
        sentences.append("More than a tenth off the budget: the cost was not quite equal.")
    if workers != 1:
        where = f"on {cores} cores" if isinstance(workers, int) else "on a cluster"
        sentences.append(
            f"Several searches ran at a time {where} and may have slowed each other; epochs were chosen by searches "
            "that ran alone."
        )
    return sentences


def _listed(off: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {share:+.0%}" for label, share in off.items())
