"""Ranking: a predictor is fitted to the labels of some architectures and guesses the scores of all others."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from nasengine import charts
from nasengine.architecture import Architecture
from nasengine.config import AnySpace, AnyTask
from nasengine.encoding import Graphs, concatenate
from nasengine.errors import NoOrderError, SettingError, TooManyError
from nasengine.heldout import Evaluation, Rows, curve_table, evaluate, fits
from nasengine.labels import SCORE, UNCERTAINTY, read_architectures, read_scores
from nasengine.predictor import Predictor, checked_scores
from nasengine.rank_plan import RankPlan, plan_ranking
from nasengine.run_directory import Run, check_free
from nasengine.seeding import generator
from nasengine.task import Shapes

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

Progress = Callable[[str, int, int], object]
"""Is called with the name of a stage, what of it is done, and what there is in all."""

RANKING, EVERYTHING, NEXT, CURVE = "ranking.csv", "ranking.parquet", "next.csv", "curve.csv"
PREDICTOR, PICTURE = "predictor.safetensors", "ranking"
FILES: Final = (RANKING, EVERYTHING, NEXT, CURVE, PREDICTOR, f"{PICTURE}.svg", f"{PICTURE}.png")
COLUMNS: Final = ("rank", SCORE, UNCERTAINTY, "known")
_POOL, _SAMPLE, _NEXT = 9, 10, 11  # streams of random numbers, beside those of a search and of labels
_BATCH, _TEXTS = 16384, 1000


@dataclass(frozen=True, eq=False)
class RankResult:
    """What a finished ranking gave.

    Attributes:
        path: the run directory.
        top: the best candidates: rank, score and uncertainty as guessed, the columns of `Space.to_table`, and the true
            score where it is known.
        texts: of the same candidates, or of the first thousand, as `Space.write` has them.
        proposals: the candidates to label next, with the same columns; none unless they were asked for.
        predictor: fitted to all labels.
        evaluation: what was measured on labels that were held out, None where there are too few.
        record: all of run.json; `record["result"]` has the measures.
    """

    path: Path
    top: pd.DataFrame
    texts: tuple[str, ...]
    proposals: pd.DataFrame | None
    predictor: Predictor
    evaluation: Evaluation | None
    record: dict[str, Any]


def rank(
    space: AnySpace | None = None,
    labels: pd.DataFrame | Path | str | None = None,
    *,
    predictor: str | type[Predictor] | Predictor | None = None,
    score: str | None = None,
    candidates: pd.DataFrame | Path | str | None = None,
    task: AnyTask | Shapes | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> RankResult:
    """Fits a predictor to labels and ranks all candidates by what it guesses.

    Where there are at least 20 labels the predictor is also judged: a fifth of them is held out several times.

    Args:
        space: a name, class or instance; where `collect` wrote the labels, its space with its settings.
        labels: a CSV or parquet file, the directory of a collection, or a table; rows that `Space.from_table` reads,
            with a score, higher is better.
        predictor: a name, class or instance; "gaussian-process" unless `config` has another.
        score: the column of the scores; "score", or the only column of numbers that is none of the space's.
        candidates: a file or table of architectures; else all of the space, or rank.sample random ones where it is too
            large to be enumerated.
        task: the data on which the labels were made, a data spec, a Dataset, a Task, or their shapes; where `collect`
            wrote the labels, its data, else images as of CIFAR-10. It matters to costs, which are part of encodings.
        settings: texts such as "rank.next=50", "predictor.prior=2" or "space.channels=16".
        config: plain values as `record["config"]` of an earlier ranking has them.
        out: the run directory; results/<space>/rank by default.
        progress: sees the stages.

    Raises:
        NasengineError: see nasengine.errors.
    """
    progress("reading", 0, 2)
    plan = plan_ranking(
        space,
        labels,
        predictor=predictor,
        score=score,
        candidates=candidates,
        task=task,
        settings=settings,
        config=config,
    )
    path = Path(out) if out is not None else plan.default_out
    check_free(path, "rank")
    start = time.perf_counter()
    job = _Job(plan, progress)
    with Run.start(path, "rank", plan.config, {**plan.facts, "score": job.labels.column}) as run:
        try:
            run.discard(FILES, keep_record=True)  # of a ranking that was killed
            return job.finish(run, start)
        except BaseException:
            run.discard(FILES)
            raise


class _Job:
    """A ranking under way: different architectures are rows of `graphs`."""

    def __init__(self, plan: RankPlan, progress: Progress) -> None:
        self.plan, self.settings, self.progress = plan, plan.settings, progress
        progress("reading", 1, 2)
        known = read_architectures(plan.space, plan.shapes, plan.labels)
        self.labels = read_scores(plan.space, plan.labels, plan.column, known)
        progress("reading", 2, 2)
        self.candidates = self._candidates()
        self.graphs, self.labelled, self.places = self._encoded()
        self.rows, self.scores = self._different()
        self.unknown = np.setdiff1d(self.places, self.rows)
        if self.settings.next > len(self.unknown):
            raise SettingError(
                f"rank.next must be at most the number of candidates without a label, {len(self.unknown):,}, but is "
                f"{self.settings.next:,}; ask for fewer by --next or give more candidates."
            )
        order = torch.randperm(len(self.unknown), generator=generator(self.settings.seed, _POOL)).numpy()
        chosen = self.unknown[np.sort(order[: self.settings.unlabelled])]
        self.pool = self.graphs.take(chosen) if len(chosen) else None

    def finish(self, run: Run, start: float) -> RankResult:
        """Fits, judges, ranks and writes."""
        self.progress("fitting", 0, 1)
        predictor = self._fitted(self.rows, self.scores)
        self.progress("fitting", 1, 1)
        evaluation = self._evaluation()
        means, deviations = self._guesses(predictor)
        self.progress("writing", 0, 4)
        scores, spreads = means[self.places], deviations[self.places]
        order = np.argsort(-scores, kind="stable")
        table = self._table(order, scores, spreads)
        top = table if self.settings.top == "all" else table.iloc[: self.settings.top]
        self.progress("writing", 1, 4)
        run.write_text(RANKING, top.to_csv(index=False, lineterminator="\n"))
        run.write_file(EVERYTHING, lambda file: table.to_parquet(file, index=False))
        self.progress("writing", 2, 4)
        proposals = self._proposals(predictor, means, deviations, order, table)
        if proposals is not None:
            run.write_text(NEXT, proposals.to_csv(index=False, lineterminator="\n"))
        predictor.save(run.path / PREDICTOR)
        if evaluation is not None:
            run.write_text(CURVE, curve_table(evaluation.curve))
        self.progress("writing", 3, 4)
        for suffix in ("svg", "png"):
            draw = lambda file: charts.draw_ranking(scores, self.scores, evaluation, file, self.labels.column)  # noqa: E731
            run.write_file(f"{PICTURE}.{suffix}", draw)
        seconds = round(time.perf_counter() - start, 1)
        run.update({"status": "finished", "seconds": seconds, "result": self._result(evaluation, top, seconds)})
        self.progress("writing", 4, 4)
        write = self.plan.space.write
        texts = tuple(write(self.candidates[int(row)]) for row in order[: min(len(top), _TEXTS)])
        return RankResult(run.path, top.reset_index(drop=True), texts, proposals, predictor, evaluation, run.record)

    def _candidates(self) -> Sequence[Architecture]:
        space, shapes, source = self.plan.space, self.plan.shapes, self.plan.candidates
        if source is not None:
            return read_architectures(space, shapes, source)
        self.progress("enumerating", 0, 1)
        try:
            return space.everything(shapes, lambda done, total: self.progress("enumerating", done, total))
        except TooManyError:
            return self._sampled()

    def _sampled(self) -> list[Architecture]:
        """Different random architectures."""
        space, count, rng = self.plan.space, self.settings.sample, generator(self.settings.seed, _SAMPLE)
        choices = space.choices(self.plan.shapes)
        found: dict[Architecture, None] = {}
        for number in range(count):
            found[space.sample(choices, rng)] = None
            if number % 100 == 99:
                self.progress("enumerating", number + 1, count)
        self.progress("enumerating", count, count)
        return list(found)

    def _encoded(self) -> tuple[Graphs, Rows, Rows]:
        """The different architectures, and where those of the labels and the candidates are among them."""
        known, total = self.labels.architectures, len(self.labels.architectures) + len(self.candidates)
        self.progress("encoding", 0, total)
        encode, shapes = self.plan.space.encode, self.plan.shapes
        parts = [encode(known, shapes)]
        step = _BATCH if len(self.candidates) > 10 * _BATCH else 500
        for start in range(0, len(self.candidates), step):
            parts.append(encode(self.candidates[start : start + step], shapes))
            self.progress("encoding", min(total, len(known) + start + step), total)
        graphs, places = concatenate(parts).unique()
        return graphs, places[: len(known)], places[len(known) :]

    def _different(self) -> tuple[Rows, Floats]:
        """The rows of labelled architectures, in the order of the labels, and their scores.

        Architectures of one encoding are one network: where they were labelled apart, the mean of their scores counts,
        so that a network is never held out from itself.
        """
        scores = checked_scores(self.labels.architectures, self.labels.scores)
        _, first, back = np.unique(self.labelled, return_index=True, return_inverse=True)
        own, kept = scores[first], np.sort(first)
        means = own + np.bincount(back, scores - own[back]) / np.bincount(back)  # exact where all are equal
        if np.ptp(means) == 0:
            raise NoOrderError(
                "Scores of different networks must differ for a predictor to be fitted, but those in "
                f"{self.plan.labels.name} are all {means[0]:g}; label more architectures."
            )
        return self.labelled[kept], means[back[kept]]

    def _fitted(self, rows: Rows, scores: Floats) -> Predictor:
        predictor = dataclasses.replace(self.plan.predictor)
        return predictor.fit_graphs(self.graphs.take(rows), scores, self.pool)

    def _evaluation(self) -> Evaluation | None:
        total = fits(len(self.scores), self.settings.draws) if self.settings.evaluate else 0
        if not total:
            return None
        self.progress("evaluating", 0, total)

        def guess(known: Rows, held: Rows) -> tuple[Floats, Floats]:
            return self._fitted(self.rows[known], self.scores[known]).predict_graphs(self.graphs.take(self.rows[held]))

        told = lambda done, of: self.progress("evaluating", done, of)  # noqa: E731
        return evaluate(self.scores, guess, self.settings.draws, self.settings.seed, told)

    def _guesses(self, predictor: Predictor) -> tuple[Floats, Floats]:
        """Guessed scores and standard deviations of all rows of `graphs`."""
        total, parts = len(self.graphs), []
        self.progress("ranking", 0, total)
        for start in range(0, total, _BATCH):
            parts.append(predictor.predict_graphs(self.graphs.take(slice(start, start + _BATCH))))
            self.progress("ranking", min(total, start + _BATCH), total)
        means, deviations = (np.concatenate(side) for side in zip(*parts, strict=True))
        return means, deviations

    def _table(self, order: Rows, scores: Floats, spreads: Floats) -> pd.DataFrame:
        """All candidates, the best first."""
        known = np.full(len(self.graphs), np.nan)
        known[self.rows] = self.scores
        space = self.plan.space
        described = space.to_table(_taken(self.candidates, order), self.plan.shapes)
        described = described.drop(columns=[name for name in COLUMNS if name in described])
        for place, (name, values) in enumerate(
            {"rank": np.arange(1, len(order) + 1), SCORE: scores[order], UNCERTAINTY: spreads[order]}.items()
        ):
            described.insert(place, name, values)
        described["known"] = known[self.places[order]]
        return described

    def _proposals(
        self, predictor: Predictor, means: Floats, deviations: Floats, order: Rows, table: pd.DataFrame
    ) -> pd.DataFrame | None:
        """The candidates to label next, without a label and no two the same: independent Thompson sampling.

        Of each candidate one value is drawn from the normal distribution of its guess, and the largest are taken, so
        that a batch holds both good and uncertain ones (White et al., AAAI 2021, arXiv:1910.11858, section 4). Values
        are drawn as quantiles, since scores are far from normal: those of bad architectures have long tails. They vary
        by the noise of a label too, as what is printed does.
        """
        if not self.settings.next:
            return None
        rng = generator(self.settings.seed, _NEXT)
        noise = torch.randn(len(self.unknown), generator=rng, dtype=torch.float64).numpy()
        middle = predictor.quantiles_.forward(means[self.unknown])
        drawn = middle + deviations[self.unknown] / predictor.quantiles_.slope(middle) * noise
        chosen = self.unknown[np.argsort(-drawn, kind="stable")[: self.settings.next]]
        ranked, first = np.unique(self.places[order], return_index=True)
        rows = np.sort(first[np.searchsorted(ranked, chosen)])
        return table.iloc[rows].drop(columns="known").reset_index(drop=True)

    def _result(self, evaluation: Evaluation | None, top: pd.DataFrame, seconds: float) -> dict[str, Any]:
        result: dict[str, Any] = {
            "labels": len(self.labels.scores),
            "networks": len(self.scores),
            "candidates": len(self.candidates),
            "best": float(top["score"].iloc[0]),
            "seconds": seconds,
        }
        if evaluation is not None:
            pairs = evaluation.summary().items()
            result["measures"] = {n: {"mean": m, "deviation": s if np.isfinite(s) else None} for n, (m, s) in pairs}
            result |= {"draws": len(evaluation.parts), "k": evaluation.k, "advice": evaluation.advice()}
        return result


def _taken(several: Sequence[Architecture], rows: Rows) -> Sequence[Architecture]:
    """Some of a list, or of a sequence that takes arrays and makes its architectures late."""
    if isinstance(several, (list, tuple)):
        return [several[row] for row in rows.tolist()]
    taken: Sequence[Architecture] = several[rows]  # type: ignore[call-overload]
    return taken
