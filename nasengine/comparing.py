"""The `compare` verb: algorithms on one space and task at equal cost, over several seeds, all of them reported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nasengine.calibrating import Calibration, calibrated, epochs_of
from nasengine.compare_plan import AnyAlgorithm, ComparePlan, Contender, plan_compare
from nasengine.comparison import (
    FINAL,
    Difference,
    Summary,
    advice,
    curve_table,
    differences,
    on_budget,
    result_table,
    search_directory,
    summaries,
)
from nasengine.config import AnySpace, AnyTask, read_config
from nasengine.errors import DivergedError, SettingError
from nasengine.loop import Observer, concluded
from nasengine.run_directory import Run, read_record
from nasengine.settings import plain
from nasengine.task import Task
from nasengine.workers import Work, ended, perform, ready_workers, written

if TYPE_CHECKING:
    import pandas as pd

TABLE: Final = "compare.csv"
CURVES: Final = "curves.csv"
PICTURE: Final = "compare"


class CompareObserver:
    """Sees a comparison; the command line shows it. This one is silent.

    Attributes:
        search: sees every search that is made in this process; `training` every training.
    """

    search: Observer = Observer()
    training: Observer = Observer()

    def began(self, stage: str, path: Path) -> None:
        """A stage (calibrate, search, train) begins, or goes on."""

    def calibrated(self, label: str, calibration: Calibration) -> None:
        """It is known what the search of an algorithm takes."""

    def chosen(self, label: str, epochs: int, seconds: float) -> None:
        """It is known how many epochs an algorithm gets, and about how many seconds that takes."""

    def works(self, *event: Any) -> None:
        """See `nasengine.workers.Watch`."""

    def ended(self, stage: str, seconds: float) -> None:
        """A stage has ended."""


@dataclass(frozen=True, eq=False)
class CompareResult:
    """What a finished comparison found.

    Attributes:
        path: the run directory.
        table: one row a search: see `nasengine.comparison.result_table`.
        summaries: of every algorithm, in the order in which they were named.
        differences: between them, with their intervals.
        record: all of run.json; `record["result"]["advice"]` has what the differences are worth, as sentences.
    """

    path: Path
    table: pd.DataFrame
    summaries: list[Summary]
    differences: list[Difference]
    record: dict[str, Any]


def compare(
    space: AnySpace | None = None,
    algorithms: str | Sequence[AnyAlgorithm] | None = None,
    task: AnyTask | None = None,
    *,
    seeds: int | str | None = None,
    budget: float | str | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    workers: int | str = 1,
    observer: CompareObserver | None = None,
) -> CompareResult:
    """Compares algorithms at equal cost: as many epochs of search for each as fit the budget, then equal trainings.

    A few steps of every search, one algorithm at a time, tell what its epochs take; its learning rates then fall to
    their end at the end of the budget. What every search derives is trained from scratch in one way, and meets the test
    set once, at the end. Nothing is chosen by it, and all seeds are reported.

    Args:
        space: a name, class or instance; "darts" unless `config` has another.
        algorithms: two or more: names that settings may follow, as in "darts:order=second", classes or instances; or
            one text with commas between them. "darts,rarts,random" unless `config` has others.
        task: a data spec, a Dataset or a Task; "digits" unless `config` has another.
        seeds: how many, from search.seed on; 3 unless `config` has another number.
        budget: of one search: seconds, or a text such as "20m"; 20 minutes unless `config` has another.
        settings: texts such as "train.epochs=30"; "space.channels=8" is of the searches and "final.channels=16" of the
            trainings.
        config: plain values as `record["config"]` of an earlier comparison has them.
        out: the run directory; results/<task>/<space>/compare-seed-<n> by default.
        resume: go on with the comparison in `out`; one that is finished goes on to more seeds.
        workers: how many searches or trainings are made at a time; see `nasengine.workers.perform`. They share the
            machine, so that their seconds are equal only as far as it has room for all.
        observer: sees the comparison.

    Raises:
        NasengineError: see nasengine.errors; InterruptedRun after SIGINT or SIGTERM.
    """
    number = ready_workers(workers)
    if resume and out is not None:
        config = {**read_config(Path(out), "compare"), **(config or {})}
    plan = plan_compare(
        space=space, algorithms=algorithms, task=task, seeds=seeds, budget=budget, settings=settings, config=config
    )
    path = Path(out) if out is not None else plan.default_out
    named = None if task is None or isinstance(task, str) else plan.task
    if number != 1 and named is not None:
        written(Work(path, "", {"task": named}))  # says that other processes cannot have it, before anything runs
    facts = {"task": plan.task.name, "fingerprint": plan.task.fingerprint}
    begin = Run.resume if resume else Run.start
    with begin(path, "compare", plan.config, facts) as directory:
        directory.update({"status": "running", "config": plan.config})
        comparison = _Comparison(directory, plan, named, number, observer or CompareObserver())
        with concluded(directory, lambda: comparison.stage):
            comparison.make()
        return comparison.result()


class _Comparison:
    """A comparison under way. What was calibrated, and what the stages took, is kept in run.json."""

    def __init__(
        self, run: Run, plan: ComparePlan, task: Task | None, workers: int | str, observer: CompareObserver
    ) -> None:
        self.run, self.plan, self.workers, self.observer = run, plan, workers, observer
        self.more = {} if task is None else {"task": task}
        self.seconds: dict[str, float] = dict(run.record.get("stages", {}))
        self.calibrations = {label: Calibration(**part) for label, part in run.record.get("calibration", {}).items()}
        self.epochs: dict[str, int] = {}
        self.stage = ""

    def make(self) -> None:
        """All stages; what has ended is left alone."""
        try:
            self._stage("calibrate", self._calibrate)
            self.epochs = epochs_of(self.calibrations, self.plan.settings.budget)
        except SettingError:
            self.run.discard([])  # nothing has begun, so that the same directory can be given a larger budget
            raise
        for label, epochs in self.epochs.items():
            self.observer.chosen(label, epochs, self.calibrations[label].seconds(epochs))
        self._stage("search", self._search)
        self._stage("train", self._train)

    def _stage(self, stage: str, make: Callable[[], None]) -> None:
        """Makes a stage, and adds to what it took."""
        self.stage = stage
        self.observer.began(stage, self.run.path)
        start = time.perf_counter()
        try:
            make()
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 1)
            self.run.update({"stages": self.seconds, "seconds": round(sum(self.seconds.values()), 1)})
        self.observer.ended(stage, self.seconds[stage])

    def result(self) -> CompareResult:
        """What is told in the end, which is then in the files."""
        measure, budget = self.plan.task.measure.name, self.plan.settings.budget
        table = self._write_tables()
        found = summaries(table, measure)
        apart = differences(found)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        sentences = [*advice(found, apart, measure), *on_budget(found, budget, self.workers, cores)]
        told = {
            "algorithms": [
                {**asdict(summary), "mean": summary.mean, "deviation": summary.deviation} for summary in found
            ],
            "differences": [{**asdict(difference), "told": difference.told} for difference in apart],
            "advice": sentences,
            "workers": self.workers,
            "seconds": self.run.record["seconds"],
        }
        self.run.update({"status": "finished", "result": told})
        return CompareResult(self.run.path, table, found, apart, self.run.record)

    def _calibrate(self) -> None:
        known = self.calibrations
        for contender in self.plan.contenders:
            if contender.label not in known:
                known[contender.label] = calibrated(self.plan, contender, self.workers)
                self.run.update({"calibration": {label: asdict(part) for label, part in known.items()}})
            self.observer.calibrated(contender.label, known[contender.label])

    def _search(self) -> None:
        works = [self._search_work(contender, seed) for seed in self.plan.seeds for contender in self.plan.contenders]
        perform(works, self.workers, self.observer.works, self.observer.search)
        curves = curve_table(self.plan, self.run.path)
        self.run.write_text(CURVES, curves.to_csv(index=False, lineterminator="\n"))
        if not any(ended(work.directory) == "finished" for work in works):
            raise DivergedError(
                f"A search must stay finite, but all {len(works)} diverged; start a new comparison with smaller "
                "learning rates."
            )

    def _search_work(self, contender: Contender, seed: int) -> Work:
        settings = self.plan.search_settings(self.epochs[contender.label], seed)
        config = {
            "space": self.plan.config["space"],
            "algo": self.plan.config["algos"][contender.label],
            "data": self.plan.config["data"],
            "search": plain(settings),
        }
        directory = search_directory(self.run.path, contender, seed)
        return Work(directory, "nasengine.searching:search", {"config": config, **self.more}, device=settings.device)

    def _train(self) -> None:
        works = [
            self._training_work(search_directory(self.run.path, contender, seed), seed)
            for seed in self.plan.seeds
            for contender in self.plan.contenders
            if ended(search_directory(self.run.path, contender, seed)) == "finished"
        ]
        perform(works, self.workers, self.observer.works, self.observer.training)
        if not any(ended(work.directory) == "finished" for work in works):
            raise DivergedError(
                f"A final training must stay finite, but all {len(works)} diverged; start a new comparison with a "
                "smaller train.lr."
            )

    def _training_work(self, search: Path, seed: int) -> Work:
        config = {
            "space": self.plan.config["final"],
            "architecture": read_record(search)["result"]["architecture"],
            "data": self.plan.config["data"],
            "train": {**self.plan.config["train"], "seed": self.plan.train.seed + seed - self.plan.search.seed},
        }
        device = self.plan.train.device
        return Work(search / FINAL, "nasengine.training:train", {"config": config, **self.more}, device=device)

    def _write_tables(self) -> pd.DataFrame:
        """compare.csv and the picture."""
        from nasengine.comparison_chart import draw_comparison

        table, curves = result_table(self.plan, self.run.path), curve_table(self.plan, self.run.path)
        self.run.write_text(TABLE, table.to_csv(index=False, lineterminator="\n"))
        measure, budget = self.plan.task.measure.name, self.plan.settings.budget
        for suffix in ("svg", "png"):
            self.run.write_file(
                f"{PICTURE}.{suffix}", lambda path: draw_comparison(table, curves, measure, budget, path)
            )
        return table
