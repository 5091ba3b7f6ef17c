"""The `run` verb: from a question to a trained, tested, exported network, with a predictor that saves trainings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import torch

from nasengine.algorithm import Algorithm
from nasengine.architecture import Architecture
from nasengine.candidates import TABLE, candidate_table, chosen_rows, worth
from nasengine.collecting import collect, read_labels
from nasengine.config import AnySpace, AnyTask, read_config
from nasengine.errors import NasengineError, NoOrderError, RunError
from nasengine.finals import FOLDER, Finalist, final_works, train_finals, winner
from nasengine.footprint import Footprint
from nasengine.loop import concluded
from nasengine.pareto import FRONT as FRONT_TABLE
from nasengine.pareto import front
from nasengine.predictor import Predictor
from nasengine.proposals import Origin
from nasengine.proposing import propose
from nasengine.ranking import RANKING as RANKED
from nasengine.ranking import rank
from nasengine.run_directory import RECORD, Run, add_result, read_record
from nasengine.run_observer import RunObserver
from nasengine.run_plan import RunPlan, plan_run
from nasengine.searching import search
from nasengine.seeding import generator
from nasengine.task import Task
from nasengine.training import score_on_test
from nasengine.wording import counted
from nasengine.workers import Work, ready_workers, written

if TYPE_CHECKING:
    import pandas as pd

SEARCH, PROPOSED, SCORES, RANKING = "search", "candidates", "scores", "ranking"
FRONT, EXPORT = "front", "export"
REPORT: Final = "report.html"
_LEFT: Final[Mapping[str, tuple[str, ...]]] = {
    "search": (SEARCH,),
    "propose": (PROPOSED,),
    "collect": (SCORES,),
    "rank": (RANKING,),
    "train": (FOLDER, TABLE),
    "test": (),
    "front": (FRONT, FRONT_TABLE),
    "export": (EXPORT,),
    "report": (REPORT,),
}
"""What the stages leave; where it was removed, they are made again."""
_LABELLED: Final = 12  # a stream of random numbers, beside those of the stages


@dataclass(frozen=True)
class RunResult:
    """What a finished pipeline gave.

    Attributes:
        path: the run directory.
        winner: the directory of the training that won, by validation.
        test_score: of its network, on the test set, by the task's measure.
        record: all of run.json.
    """

    path: Path
    winner: Path
    test_score: float
    record: dict[str, Any]


def run(
    space: AnySpace | None = None,
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None = None,
    task: AnyTask | None = None,
    *,
    predictor: str | type[Predictor] | Predictor | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    workers: int | str = 1,
    observer: RunObserver | None = None,
) -> RunResult:
    """Searches, proposes candidates, labels a part, ranks all, trains the best, tests one, exports it and reports.

    With run.against="multiply_adds" or other costs it also searches a front, before the export: what is best at which
    cost by the guesses of the predictor. A front keeps the limits of the search.

    Every stage writes into a directory of its own below `out`, in the form of its verb, and is left alone where its
    result stands. The winner is the candidate whose final trainings have the best mean score on what they held out
    (train.valid_portion), and of its trainings the best one; its network alone meets the test set, once.

    Args:
        space: a name, class or instance; "darts" unless `config` has another.
        algorithm: a name, class or instance; "rarts" unless `config` has another.
        task: a data spec, a Dataset or a Task; "digits" unless `config` has another.
        predictor: a name, class or instance; "gaussian-process" unless `config` has another.
        settings: texts such as "search.epochs=8", "propose.count=64", "run.labels=24", "run.train=4" and
            "train.epochs=30"; "space.channels=8" is of the search and "final.channels=16" of the final training. Seeds
            and devices of all stages are those of the search unless they are given.
        config: plain values as `record["config"]` of an earlier run has them.
        out: the run directory; results/<task>/<space>/<algo>/run-seed-<n> by default.
        resume: go on with the run in `out`.
        workers: how many labels and final trainings are made at a time; see `nasengine.workers.perform`.
        observer: sees the run.

    Raises:
        NasengineError: see nasengine.errors; InterruptedRun after SIGINT or SIGTERM.
    """
    number = ready_workers(workers)
    if resume and out is not None:
        config = {**read_config(Path(out), "run"), **(config or {})}
    plan = plan_run(space=space, algorithm=algorithm, task=task, predictor=predictor, settings=settings, config=config)
    path = Path(out) if out is not None else plan.default_out
    named = None if task is None or isinstance(task, str) else plan.task
    if number != 1 and named is not None:
        written(Work(path, "", {"task": named}))  # says that other processes cannot have it, before anything runs
    facts = {"task": plan.task.name, "fingerprint": plan.task.fingerprint}
    begin = Run.resume if resume else Run.start
    with begin(path, "run", plan.config, facts) as directory:
        directory.update({"status": "running", "config": plan.config})
        stages = _Stages(directory, plan, named, number, observer or RunObserver())
        with concluded(directory, lambda: stages.stage):
            try:
                result = stages.result()
            except NasengineError:
                if not stages.begun:
                    directory.discard([])  # so that the same directory can be given other settings
                raise
        directory.update({"status": "finished", "result": result})
        test = float(result[f"test_{plan.task.measure.name}"])
        return RunResult(path, path / str(result["winner"]), test, directory.record)


class _Stages:
    """A pipeline under way. What each stage took and came to is kept in run.json."""

    def __init__(self, run: Run, plan: RunPlan, task: Task | None, workers: int | str, observer: RunObserver) -> None:
        self.run, self.plan, self.task, self.workers, self.observer = run, plan, task, workers, observer
        self.done: dict[str, dict[str, Any]] = dict(run.record.get("stages", {}))
        self.seconds = sum(float(stage["seconds"]) for stage in self.done.values())
        self.stage = ""

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.run.path / SEARCH / RECORD).exists() or any("made" in stage for stage in self.done.values())

    def result(self) -> dict[str, Any]:
        """Makes all stages whose result does not stand, and says what came of them."""
        for name, make in self._all().items():
            if self._stands(name):
                self.observer.stood(name)
                continue
            self.stage = name
            self.observer.began(name, self.run.path)
            before, start = float(self.done.get(name, {}).get("seconds", 0)), time.perf_counter()
            found: dict[str, Any] = {}
            try:
                found = {**make(), "made": True}
            finally:
                seconds = round(before + time.perf_counter() - start, 1)
                self.done[name] = {"seconds": seconds, **found}
                total = round(sum(float(stage["seconds"]) for stage in self.done.values()), 1)
                self.run.update({"stages": self.done, "seconds": total})
            self.observer.ended(name, seconds, str(found.get("said", "")))
        return self._told()

    def _all(self) -> dict[str, Callable[[], dict[str, Any]]]:
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "search": self._search,
            "propose": self._propose,
            "collect": self._collect,
            "rank": self._rank,
            "train": self._train,
            "test": self._test,
        }
        if self.plan.front is not None:
            stages["front"] = self._front
        if self.plan.settings.export != "none":
            stages["export"] = self._export
        return {**stages, "report": self._report}

    def _stands(self, name: str) -> bool:
        """Whether a stage has been made, and what it wrote has not been removed since."""
        made = self.done.get(name, {}).get("made") and all((self.run.path / file).exists() for file in _LEFT[name])
        return bool(made) and (name != "test" or self._tested() is not None)

    def _search(self) -> dict[str, Any]:
        path, names = self.run.path / SEARCH, ("space", "algo", "data", "search", "final")
        if not _finished(path):
            config = {name: self.plan.config[name] for name in names}
            resume = (path / RECORD).exists()
            search(task=self.task, config=config, out=path, resume=resume, observer=self.observer.search)
        result = read_record(path)["result"]
        measure = f"derived_{self.plan.task.measure.name}"
        return {"said": f"{_shown(measure, result[measure])} with inherited weights"}

    def _propose(self) -> dict[str, Any]:
        path = self.run.path / PROPOSED
        if not _finished(path):
            propose(self.run.path / SEARCH, task=self.task, config=self.plan.config, out=path)
        result = read_record(path)["result"]
        origins = [f"{result[name]} {name}" for name in get_args(Origin) if name in result]
        return {"said": f"{counted(result['candidates'], 'candidate')}: {', '.join(origins)}"}

    def _collect(self) -> dict[str, Any]:
        path, settings = self.run.path / SCORES, self.plan.settings
        if not _finished(path):
            table, inherits = self._proposed(), settings.score == "inherited"
            order = torch.randperm(len(table), generator=generator(self.plan.collect.seed, _LABELLED)).tolist()
            rows = chosen_rows(len(table), settings.labels, order)
            chosen = table.iloc[rows][self._keys(table)]
            config = {name: self.plan.config[name] for name in ("space", "data", "collect")}
            collect(
                task=self.task,
                count=len(rows),
                architectures=chosen,
                inherit=self.run.path / SEARCH if inherits else None,
                config=config,
                out=path,
                resume=(path / RECORD).exists(),
                workers=self.workers,
                observer=self.observer.labels,
                watch=self.observer.works,
            )
        result = read_record(path)["result"]
        best, worst = (_shown(self.plan.task.measure.name, result[f"{end}_score"]) for end in ("best", "worst"))
        return {"said": f"{counted(result['labels'], 'label')}, {worst} to {best}"}

    def _rank(self) -> dict[str, Any]:
        path = self.run.path / RANKING
        if not _finished(path):
            try:
                self._rank_by_predictor(path)
            except NoOrderError:
                return {"said": "the labels tell no order, so that candidates keep that of the search"}
        measures = read_record(path)["result"].get("measures", {}).get("kendall_tau")
        agrees = f"Kendall tau {measures['mean']:.2f} on labels held out" if measures else "too few labels to judge it"
        return {"said": f"by {self.plan.predictor.name}, {agrees}"}

    def _rank_by_predictor(self, path: Path) -> None:
        rank(
            labels=self.run.path / SCORES,
            candidates=self.run.path / PROPOSED / TABLE,
            predictor=self.plan.predictor,
            task=self.plan.task.shapes,
            config={"space": self.plan.config["space"], "rank": {**self.plan.config["rank"], "top": "all"}},
            out=path,
            progress=self.observer.ranking,
        )

    def _ranking(self) -> pd.DataFrame:
        """What `rank` wrote, or the candidates as the search proposed them where their labels tell no order."""
        if _finished(self.run.path / RANKING):
            return self._read(self.run.path / RANKING / RANKED)
        proposed = self._proposed()
        keys = self._keys(proposed)
        known = read_labels(self.run.path / SCORES)[[*keys, "score"]].rename(columns={"score": "known"})
        table = proposed[keys].assign(rank=range(1, len(proposed) + 1), score=math.nan, uncertainty=math.nan)
        return table.merge(known, on=keys, how="left")

    def _train(self) -> dict[str, Any]:
        finals = self._finals()
        best, path = winner(finals, self.plan.task.measure.name)
        self._write_table(finals)
        spread = "" if best.deviation is None else f" ± {_shown(self.plan.task.measure.name, best.deviation)}"
        score = _shown(self.plan.task.measure.name, best.mean)
        return {
            "said": f"{counted(len(finals), 'candidate')}; the winner ranked {best.rank}, validation {score}{spread}",
            "winner": str(path.relative_to(self.run.path)),
            "rank": best.rank,
            "architecture": str(best.architecture),
        }

    def _finals(self) -> list[Finalist]:
        """The final trainings; those that have ended are left alone."""
        ranking = self._ranking().head(self.plan.settings.train)
        best = list(self.plan.search.space.from_table(ranking))
        config = {"space": self.plan.config["final"], **{name: self.plan.config[name] for name in ("data", "train")}}
        more = {} if self.task is None else {"task": self.task}
        works = final_works(self.run.path / FOLDER, best, config, self.plan.settings.seeds, more)
        return train_finals(works, best, self.plan.task.measure.name, self.workers, self.observer.works)

    def _tested(self) -> float | None:
        """The test score of the winner, where it has met the test set."""
        result: dict[str, float] = read_record(self.run.path / self.done["train"]["winner"])["result"]
        return result.get(f"test_{self.plan.task.measure.name}")

    def _test(self) -> dict[str, Any]:
        """The one look at the test set."""
        measure, value = self.plan.task.measure.name, self._tested()
        if value is None:
            path = self.run.path / self.done["train"]["winner"]
            value = score_on_test(path, self.plan.task)
            add_result(path, {f"test_{measure}": value, "test_size": len(self.plan.task.dataset.test_targets)})
        said = f"{_shown(measure, value)} on the test set, by the winner alone"
        return {f"test_{measure}": value, "said": said, "latency": self._latency()}

    def _latency(self) -> dict[str, Any]:
        """What the winner takes, where that is limited."""
        search = self.plan.search
        if search.settings.max_latency is None:
            return {}
        footprint = Footprint(search.final, search.task.shapes, search.settings.latency)
        return footprint.facts(Architecture.parse(self.done["train"]["architecture"]))

    def _front(self) -> dict[str, Any]:
        path = self.run.path / FRONT
        if not _finished(path):
            config = {name: self.plan.config[name] for name in ("final", "front")}
            front(self.run.path / RANKING, config=config, out=path, progress=self.observer.ranking)
        self.run.write_text(FRONT_TABLE, (path / FRONT_TABLE).read_text(encoding="utf-8"))
        result = read_record(path)["result"]
        return {"said": f"{result['points']} of {result['evaluated']:,} architectures are on it, by guessed scores"}

    def _export(self) -> dict[str, Any]:
        from nasengine.exporting import export

        winner, formats = self.run.path / self.done["train"]["winner"], self.plan.settings.export
        made = export(winner, formats, out=self.run.path / EXPORT, task=self.plan.task)
        return {"said": f"{', '.join(file.name for file in made.files.values())}, each the same as the network"}

    def _report(self) -> dict[str, Any]:
        from nasengine.findings import read_findings
        from nasengine.reporting import page

        self.run.update({"result": self._told()})
        (finding,) = read_findings([self.run.path])
        ending = replace(finding, record={**finding.record, "status": "finished"})  # as it is once this is written
        self.run.write_text(REPORT, page([ending]))
        return {"said": REPORT}

    def _told(self) -> dict[str, Any]:
        """The result in run.json."""
        trained, measure = self.done["train"], self.plan.task.measure.name
        record = read_record(self.run.path / trained["winner"])["result"]
        labels = read_record(self.run.path / SCORES)["result"]
        table = self._read(self.run.path / TABLE)
        return {
            **{name: trained[name] for name in ("winner", "rank", "architecture")},
            "genotype": record["genotype"],
            f"valid_{measure}": record[f"valid_{measure}"],
            f"test_{measure}": self.done["test"][f"test_{measure}"],
            **{name: record[name] for name in ("parameters", "multiply_adds")},
            **self.done["test"].get("latency", {}),
            "predictor": worth(table, labels["label_seconds"] / labels["labels"]),
            "stages": {name: stage["seconds"] for name, stage in self.done.items()},
            "seconds": self.run.record["seconds"],
        }

    def _write_table(self, finals: Sequence[Finalist]) -> None:
        proposed = self._proposed()
        table = candidate_table(proposed, self._ranking(), self._keys(proposed), finals)
        self.run.write_text(TABLE, table.to_csv(index=False, lineterminator="\n"))

    def _proposed(self) -> pd.DataFrame:
        return self._read(self.run.path / PROPOSED / TABLE)

    def _keys(self, table: pd.DataFrame) -> list[str]:
        """The columns by which the space reads architectures."""
        return [name for name in table if name in self.plan.search.space.table_columns]

    def _read(self, file: Path) -> pd.DataFrame:
        """A table with the columns of the space as texts. Raises RunError."""
        import pandas as pd

        try:
            return pd.read_csv(file, dtype=dict.fromkeys(self.plan.search.space.table_columns, str))
        except (OSError, ValueError):  # pandas' own errors are of the second kind
            again = file if file.parent == self.run.path else file.parent
            raise RunError(
                f"{file} must be a table that the run wrote, but is missing or damaged; put it back, or remove {again} "
                "and go on with --resume, which makes it again."
            ) from None


def _finished(path: Path) -> bool:
    return (path / RECORD).exists() and read_record(path)["status"] == "finished"


def _shown(measure: str, value: float) -> str:
    """A score as it is told: a share in per cent, any other number as it is."""
    return f"{value:.2%}" if measure.endswith("accuracy") else f"{value:.4g}"
