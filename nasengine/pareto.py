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
from nasengine.config import FrontSettings, plain_plugin, resolve_settings, split_assignments
from nasengine.errors import ArchitectureError, MissingExtraError, RunError
from nasengine.evolution import Candidates
from nasengine.labels import SCORE, UNCERTAINTY, read_architectures, read_source
from nasengine.predictor import PREDICTORS, Predictor, load_predictor
from nasengine.pricing import Costs, Prices, chosen_costs
from nasengine.ranking import PREDICTOR, RANKING, Progress
from nasengine.registry import SPACES
from nasengine.run_directory import RECORD, Run, check_free, read_record
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Shapes

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

FRONT, PICTURE = "front.csv", "front"
FILES: Final = (FRONT, f"{PICTURE}.svg", f"{PICTURE}.png")
_BELOW: Final = "ranking"
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

    NSGA-II by pymoo; the front is that of all architectures that it evaluated.

    Args:
        predictor: the directory of a ranking or of a pipeline, the file of a saved predictor, or a fitted predictor.
        costs: gives the costs that front.against names, an array (N,) each for N architectures; parameters and
            multiply-adds are known without, those of the network in its final form.
        settings: texts such as "front.against=parameters,multiply_adds" or "front.generations=80".
        config: plain values as `record["config"]` of an earlier front has them.
        out: the run directory; front/ beside the predictor by default, or results/<space>/front.
        progress: sees the stages.

    Raises:
        MissingExtraError: pymoo is not installed.
        NasengineError: see nasengine.errors.
    """
    stored, given = dict(config or {}), split_assignments(list(settings), ("front",))
    numbers = resolve_settings(FrontSettings, stored.get("front", {}), given["front"], "front")
    against = chosen_costs(numbers.against)
    _require_pymoo()
    progress("reading", 0, 1)
    file, fitted = _fitted(predictor if predictor is not None else stored.get("files", {}).get("predictor"))
    space, shapes = fitted.check(), fitted.shapes
    named = {"space": plain_plugin(SPACES, space), "predictor": plain_plugin(PREDICTORS, fitted)}
    final = {**named, "front": plain(numbers), "files": {"predictor": str(file.resolve()) if file else None}}
    final |= {"data": data} if (data := stored.get("data") or _data(file)) else {}
    beside = file.parent / "front" if file is not None else Path("results") / space.name / "front"
    path = Path(out) if out is not None else beside
    check_free(path, "front")
    start = time.perf_counter()
    job = _Job(space, shapes, fitted, numbers, Prices(space, shapes, against, costs), progress)
    first = _ranked(file, space, shapes)[: numbers.population // _FIRST]
    progress("reading", 1, 1)
    with Run.start(path, "front", final, {"space": space.name}) as run:
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
        shapes: Shapes,
        predictor: Predictor,
        settings: FrontSettings,
        prices: Prices,
        progress: Progress,
    ) -> None:
        self.space, self.shapes, self.predictor, self.settings = space, shapes, predictor, settings
        self.prices, self.progress = prices, progress
        self.deviations: dict[Architecture, float] = {}
        choices = space.choices(shapes)
        limits = Limits(settings.max_params, settings.max_flops)
        self.candidates = Candidates(space, choices, partial(prices.keeps, limits), prices.start(choices, limits))

    def finish(self, run: Run, first: Sequence[Architecture], start: float) -> FrontResult:
        """Evolves and writes."""
        from nasengine.nsga2 import evolve_front

        settings, candidates = self.settings, self.candidates
        self.progress("evolving", 0, settings.generations)
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
        self.progress("writing", 0, 1)
        rows = self._different(found, values)
        table = self._table([found[row] for row in rows], values[rows])
        run.write_text(FRONT, table.to_csv(index=False, lineterminator="\n"))
        for suffix in ("svg", "png"):
            draw = partial(charts.draw_front, values * self._signs, rows, self.prices.against)
            run.write_file(f"{PICTURE}.{suffix}", draw)
        seconds = round(time.perf_counter() - start, 1)
        best = float(-values[:, 0].min())
        result = {"points": len(rows), "evaluated": len(found), "best": best, "seconds": seconds}
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

    def _different(self, found: Sequence[Architecture], values: Floats) -> list[int]:
        """The rows of the front, the cheapest first; of those with equal encodings the first one."""
        rows = np.flatnonzero(non_dominated(values))
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


def _require_pymoo() -> None:
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
