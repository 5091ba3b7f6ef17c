"""Pareto fronts: of the architectures of a space those that nothing beats in both the guessed score and the costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nasengine import charts
from nasengine.architecture import Architecture
from nasengine.budget import Limits
from nasengine.config import FrontSettings, plain_plugin, resolve_final, resolve_settings, split_assignments
from nasengine.errors import ArchitectureError, LimitError, MissingExtraError, RunError, SettingError
from nasengine.evolution import Candidates
from nasengine.footprint import Footprint
from nasengine.labels import SCORE, UNCERTAINTY, read_architectures, read_source
from nasengine.predictor import PREDICTORS, Predictor, load_predictor
from nasengine.pricing import Costs, Prices, chosen_costs
from nasengine.ranking import PREDICTOR, RANKING, Progress
from nasengine.registry import SPACES
from nasengine.run_directory import RECORD, Run, check_free, read_record
from nasengine.settings import in_seconds, plain
from nasengine.space import Space
from nasengine.task import Shapes

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

FRONT, PICTURE = "front.csv", "front"
FILES: Final = (FRONT, f"{PICTURE}.svg", f"{PICTURE}.png")
_BELOW: Final = "ranking"
GROUPS: Final = ("front", "final")
_FIRST = 4  # one of so many of the first generation is of the ranking


@dataclass(frozen=True, eq=False)
class FrontResult:
    """What a finished search of a front gave.

    Attributes:
        path: the run directory.
        front: the columns of `Space.to_table`, the guessed score and its uncertainty, the costs; the cheapest first.
        texts: of the same architectures, as `Space.write` has them.
        evaluated: how many different architectures were.
        record: all of run.json.
    """

    path: Path
    front: pd.DataFrame
    texts: tuple[str, ...]
    evaluated: int
    record: dict[str, Any]


def front(
    predictor: Path | str | Predictor | None = None,
    *,
    costs: Costs | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> FrontResult:
    """Searches the architectures of a space that no other beats in both the score a predictor guesses and the costs.

    NSGA-II by pymoo; the front is that of all architectures that it evaluated. Costs and limits are of the network that
    is to be trained: in the final form of a pipeline below which the predictor lies, else in that of its space. Where
    the table of operations is not trusted, it leads the search, and the networks of the front are measured end-to-end.

    Args:
        predictor: the directory of a ranking or of a pipeline, the file of a saved predictor, or a fitted predictor.
        costs: gives costs of one's own in place of the counted and measured ones, an array (N,) each for N
            architectures.
        settings: texts such as "front.against=parameters,latency", "front.max_latency=5ms", "front.latency.threads=2"
            or "final.channels=16".
        config: plain values as `record["config"]` of an earlier front has them.
        out: the run directory; front/ in the pipeline or the ranking of the predictor by default, or
            results/<space>/front.
        progress: sees the stages.

    Raises:
        MissingExtraError: pymoo is not installed.
        NasengineError: see nasengine.errors.
    """
    stored, given = dict(config or {}), split_assignments(list(settings), GROUPS)
    numbers = resolve_settings(FrontSettings, stored.get("front", {}), given["front"], "front")
    against = chosen_costs(numbers.against)
    require_pymoo()
    progress("reading", 0, 1)
    file, fitted = _fitted(predictor if predictor is not None else stored.get("files", {}).get("predictor"))
    space, shapes, pipeline = fitted.check(), fitted.shapes, _pipeline(file)
    final = resolve_final(space, stored.get("final", pipeline.get("final", {})), given["final"])
    _check_choices(space, final, shapes)
    resolved = {
        "space": plain_plugin(SPACES, space),
        "final": plain_plugin(SPACES, final),
        "predictor": plain_plugin(PREDICTORS, fitted),
        "front": plain(numbers),
        "files": {"predictor": str(file.resolve()) if file else None},
    }
    resolved |= {"data": data} if (data := stored.get("data") or pipeline.get("data") or _data(file)) else {}
    path = Path(out) if out is not None else _default_out(file, space)
    check_free(path, "front")
    start = time.perf_counter()
    progress("reading", 1, 1)
    job = _Job(space, final, shapes, fitted, numbers, against, costs, progress)
    first = _ranked(file, space, shapes)[: numbers.population // _FIRST]
    with Run.start(path, "front", resolved, {"space": space.name}) as run:
        try:
            run.discard(FILES, keep_record=True)  # of one that was killed
            return job.finish(run, first, start)
        except BaseException:
            run.discard(FILES)
            raise


def non_dominated(values: Floats) -> NDArray[np.bool_]:
    """Which rows of (N, M) no other one dominates: at most as large everywhere, and smaller somewhere."""
    kept = np.zeros(len(values), bool)
    front: list[int] = []
    for row in np.lexsort(values.T[::-1]):  # what dominates a row comes before it
        others = values[front]
        smaller = (others <= values[row]).all(1) & (others < values[row]).any(1)
        if not smaller.any():
            front.append(int(row))
            kept[row] = True
    return kept


class _Job:
    """A search of a front under way."""

    def __init__(
        self,
        space: Space,
        final: Space,
        shapes: Shapes,
        predictor: Predictor,
        settings: FrontSettings,
        against: Sequence[str],
        costs: Costs | None,
        progress: Progress,
    ) -> None:
        self.space, self.shapes, self.predictor, self.settings = space, shapes, predictor, settings
        self.progress, self.deviations, self._evolving = progress, dict[Architecture, float](), False
        limits = Limits(settings.max_params, settings.max_flops, settings.max_latency, settings.max_memory)
        self.footprint = Footprint(final, shapes, settings.latency, self._measures, guesses=True)
        self.form = space.form(final)
        self.prices = Prices(final, shapes, against, limits, self.footprint, self.form, costs)
        choices = space.choices(shapes)
        start = self.prices.start(choices)
        self.prices([start])  # so that a table is calibrated before the first generation
        self.candidates = Candidates(space, choices, self.prices.keeps, start)

    def _measures(self, stage: str, done: int, total: int) -> None:
        """The few operations that a generation brings are no stage of their own."""
        if not self._evolving:
            self.progress(stage, done, total)

    def finish(self, run: Run, first: Sequence[Architecture], start: float) -> FrontResult:
        """Evolves and writes."""
        from nasengine.nsga2 import evolve_front

        settings, candidates = self.settings, self.candidates
        self.progress("evolving", 0, settings.generations)
        self._evolving = True
        found, values = evolve_front(
            candidates,
            self.objectives,
            1 + len(self.prices.against),
            population=settings.population,
            generations=settings.generations,
            seed=settings.seed,
            first=[candidates.start, *filter(candidates.allowed, first)],
            watch=lambda generation: self.progress("evolving", generation, settings.generations),
        )
        self._evolving = False
        rows, told = self._different(found, values, range(len(found))), dict[str, Any]()
        if self.prices.timed:
            rows, told = self._timed(found, values, rows)
        self.progress("writing", 0, 1)
        table = self._table([found[row] for row in rows], values[rows])
        run.write_text(FRONT, table.to_csv(index=False, lineterminator="\n"))
        for suffix in ("svg", "png"):
            draw = partial(charts.draw_front, values * self._signs, rows, self.prices.against)
            run.write_file(f"{PICTURE}.{suffix}", draw)
        seconds = round(time.perf_counter() - start, 1)
        best = float(-values[rows, 0].min())
        result = {"points": len(rows), "evaluated": len(found), "best": best, "seconds": seconds, **told}
        result["trained_with"] = self.form
        run.update({"status": "finished", "seconds": seconds, "shapes": plain(self.shapes), "result": result})
        self.progress("writing", 1, 1)
        texts = tuple(self.space.write(found[row]) for row in rows)
        return FrontResult(run.path, table, texts, len(found), run.record)

    def objectives(self, architectures: Sequence[Architecture]) -> Floats:
        """(N, 1 + costs) numbers to be minimised: the guessed score with its sign turned, then the costs."""
        graphs, places = self.space.encode(architectures, self.shapes).unique()
        scores, deviations = self.predictor.predict_graphs(graphs)
        self.deviations.update(zip(architectures, deviations[places].tolist(), strict=True))
        priced = self.prices(architectures)
        return np.stack([-scores[places], *(priced[name] for name in self.prices.against)], axis=1)

    @property
    def _signs(self) -> Floats:
        return np.array([-1.0, *[1.0] * len(self.prices.against)])

    def _timed(
        self, found: Sequence[Architecture], values: Floats, rows: list[int]
    ) -> tuple[list[int], dict[str, Any]]:
        """The rows of the front, measured where the table is not trusted, and how latencies were told.

        What is measured is put into `values`.
        """
        model = self.footprint.model
        table = model.calibration()
        told = {"latency_table_error": table.median_error, "latency_on": model.machine}
        if not table.trusted:
            seconds = self.footprint.measured([found[row] for row in rows])
            if "latency" in self.prices.against:
                values[rows, 1 + self.prices.against.index("latency")] = seconds
            limit = self.settings.max_latency or np.inf
            kept = [row for row, taken in zip(rows, seconds, strict=True) if taken <= limit]
            if not kept:
                raise LimitError(
                    f"The limits must leave an architecture of space {self.space.name!r}, but of {len(rows)} that keep "
                    f"them by the table of operations the fastest takes {in_seconds(min(seconds))} where it is "
                    "measured; give --max-latency that."
                )
            rows = self._different(found, values, kept)
        model.save()
        return rows, {"latency_by": "table" if table.trusted else "measurement", **told}

    def _different(self, found: Sequence[Architecture], values: Floats, among: Sequence[int]) -> list[int]:
        """The rows of the front `among` some, the cheapest first; of those with equal encodings the first one."""
        rows = np.asarray(among)
        rows = rows[non_dominated(values[rows])]
        _, places = self.space.encode([found[row] for row in rows.tolist()], self.shapes).unique()
        rows = rows[np.sort(np.unique(places, return_index=True)[1])]
        return [int(row) for row in rows[np.lexsort((values[rows, 0], *values[rows, :0:-1].T))]]

    def _table(self, architectures: Sequence[Architecture], values: Floats) -> pd.DataFrame:
        named = (SCORE, UNCERTAINTY, *self.prices.against)
        table = self.space.to_table(architectures, self.shapes)
        table = table.drop(columns=[name for name in named if name in table])
        table[SCORE] = -values[:, 0]
        table[UNCERTAINTY] = [self.deviations[architecture] for architecture in architectures]
        for name, column in zip(self.prices.against, values[:, 1:].T, strict=True):
            table[name] = column.astype(np.int64) if (column == np.rint(column)).all() else column
        return table


def require_pymoo() -> None:
    """Raises MissingExtraError unless it is installed."""
    try:
        import pymoo.core.problem  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "A Pareto front must be searched by pymoo, which is not installed; run pip install 'nasengine[front]'."
        ) from None


def _fitted(source: Path | str | Predictor | None) -> tuple[Path | None, Predictor]:
    """The fitted predictor, and its file if there is one."""
    if isinstance(source, Predictor):
        if not hasattr(source, "quantiles_"):
            raise RunError("The predictor of a front must be fitted, but this one is not; call fit.")
        return None, source
    if source is None:
        raise RunError("A front must have a predictor, but none is given; name the directory of a ranking.")
    path = Path(source)
    if path.is_dir():
        below = path / _BELOW / PREDICTOR
        path = below if below.exists() else path / PREDICTOR
        if not path.exists():
            raise RunError(
                f"A front must have the directory of a finished ranking, with a {PREDICTOR}, but {source} has none; "
                "rank first by 'nasengine rank'."
            )
    return path, load_predictor(path)


def _pipeline(file: Path | None) -> dict[str, Any]:
    """The configuration of the pipeline that a predictor is part of; empty where it is of none."""
    above = file.resolve().parent.parent if file is not None and file.resolve().parent.name == _BELOW else None
    record = read_record(above) if above is not None and (above / RECORD).exists() else {}
    return dict(record["config"]) if record.get("verb") == "run" else {}


def _default_out(file: Path | None, space: Space) -> Path:
    if file is None:
        return Path("results") / space.name / "front"
    return (file.parent.parent if _pipeline(file) else file.parent) / "front"


def _check_choices(space: Space, final: Space, shapes: Shapes) -> None:
    """Raises SettingError unless every architecture has a network in the final form."""
    searched, trained = space.choices(shapes), final.choices(shapes)
    if {label: choice.options for label, choice in searched.items()} != {n: c.options for n, c in trained.items()}:
        raise SettingError(
            f"The network to train must have the choices of the search of space {space.name!r}, but has others with "
            f"{space.changes(final)}; leave out what changes them."
        )


def _data(file: Path | None) -> dict[str, Any]:
    """The data of the ranking that wrote a predictor, if that is known."""
    beside = file.parent / RECORD if file is not None else None
    return dict(read_record(beside.parent)["config"].get("data", {})) if beside is not None and beside.exists() else {}


def _ranked(file: Path | None, space: Space, shapes: Shapes) -> list[Architecture]:
    """The best of the ranking that wrote a predictor, if there is one."""
    table = file.parent / RANKING if file is not None else None
    if table is None or not table.exists():
        return []
    try:
        return list(read_architectures(space, shapes, read_source(table, "candidates")))
    except ArchitectureError:
        return []
