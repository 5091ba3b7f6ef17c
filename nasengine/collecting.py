"""Labels for performance predictors: architectures of a space, each trained from scratch and judged."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nasengine.architecture import Architecture
from nasengine.config import (
    AnySpace,
    AnyTask,
    CollectSettings,
    plain_plugin,
    read_config,
    resolve_device,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.errors import DataError, InterruptedRun, RunError, SettingError
from nasengine.labelling import (
    LABELS,
    NUMBERS,
    CollectJob,
    InheritJob,
    LabelRow,
    check,
    drawn,
    label,
    summary,
)
from nasengine.labels import read_architectures, read_source
from nasengine.loop import Loop, Observer, describe_device, seeded
from nasengine.precision import require_precision
from nasengine.registry import SPACES
from nasengine.run_directory import CHECKPOINT, RECORD, Run, read_record
from nasengine.searching import TRAIN, open_search
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.tables import csv_text
from nasengine.task import Task
from nasengine.workers import Event, Watch, Work, perform, ready_workers

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("space", "data", "collect")
GIVEN: Final = "architectures.csv"
_PARTS: Final = "parts"


@dataclass(frozen=True)
class CollectResult:
    """What a finished collection gave.

    Attributes:
        path: the run directory.
        labels: the file of the labels in it, which `read_labels` reads.
        record: all of run.json.
    """

    path: Path
    labels: Path
    record: dict[str, Any]


def read_labels(path: Path | str) -> pd.DataFrame:
    """The table of labels in a file or in the directory of a collection, for `Space.from_table`.

    One row an architecture, in the order of their numbers: the columns of `Space.to_table` as texts, then

        score: on the validation part by the task's measure, higher is better; the test set has no part in it.
        epochs: whole passes that each training made: fewer than those of other rows where one diverged.
        seconds: that training and judging took.
        parameters: trainable ones.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    import pandas as pd

    file = Path(path) / LABELS if Path(path).is_dir() else Path(path)
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        return table.astype({"score": float, "epochs": int, "seconds": float, "parameters": int})
    except (OSError, ValueError, KeyError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not such a table"
        raise DataError(
            f"Labels must be in a readable {LABELS} of 'nasengine collect', but {file} is none: {why}."
        ) from None


@dataclass(frozen=True)
class CollectPlan:
    """A collection that is resolved but has not begun.

    Attributes:
        given: the architectures to label, None for random ones.
        inherit: the search whose weights they share, None where they are trained.
    """

    space: Space
    task: Task
    settings: CollectSettings
    config: dict[str, Any]
    given: Sequence[Architecture] | None = None
    inherit: Path | None = None

    @property
    def default_out(self) -> Path:
        """results/<task>/<space>/labels/seed-<n>"""
        return Path("results") / self.task.name / self.space.name / "labels" / f"seed-{self.settings.seed}"

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same when the collection goes on."""
        facts: dict[str, Any] = {"task": self.task.name, "fingerprint": self.task.fingerprint}
        if self.given is not None:
            text = "\n".join(map(str, self.given))
            facts["architectures"] = hashlib.sha256(text.encode()).hexdigest()
        return facts

    def job(self) -> CollectJob | InheritJob:
        """What the loop runs; what does not fit is told before anything is written."""
        if self.inherit is None:
            check(self.space, self.task, self.settings)
        several = self.given or drawn(self.space, self.task, self.settings)
        chosen = dict(enumerate(several[: self.settings.count]))
        if self.inherit is not None:
            return InheritJob(open_search(self.inherit, self.task), chosen)
        return CollectJob(self.space, self.task, self.settings, chosen)


def plan_collection(
    space: AnySpace | None = None,
    task: AnyTask | None = None,
    *,
    architectures: pd.DataFrame | Path | str | None = None,
    inherit: Path | str | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> CollectPlan:
    """Resolves a space, data, settings (texts such as "collect.epochs=5") and a stored configuration."""
    stored = {**_origin(architectures, space, task), **(config or {})}
    given = split_assignments(list(settings), GROUPS)
    inherit = inherit if inherit is not None else stored.get("inherit")
    if inherit is not None:
        found = read_config(Path(inherit), "search")
        stored = {**stored, "space": found["space"], "data": found["data"]}
        _check_inherits(space, task, given)
    resolved = resolve_space(space, stored.get("space", {"name": "darts"}), given["space"])
    resolved_task, data = resolve_task(task, stored.get("data", {}), given["data"])
    chosen = None
    if architectures is not None:
        chosen = list(read_architectures(resolved, resolved_task.shapes, read_source(architectures, "architectures")))
        _check_different(chosen)
        given["collect"] = {"count": str(len(chosen)), **given["collect"]}
    numbers = resolve_settings(CollectSettings, stored.get("collect", {}), given["collect"], "collect")
    require_precision(numbers.precision, resolve_device(numbers.device))
    if chosen is not None and numbers.count > len(chosen):
        raise SettingError(
            f"collect.count must be at most the number of architectures that are given, {len(chosen)}, but is "
            f"{numbers.count}; give more of them or ask for fewer by --count."
        )
    final: dict[str, Any] = {"space": plain_plugin(SPACES, resolved), "data": data, "collect": plain(numbers)}
    path = Path(inherit).resolve() if inherit is not None else None
    final |= {"inherit": str(path)} if path is not None else {}
    return CollectPlan(resolved, resolved_task, numbers, final, chosen, path)


def collect(
    space: AnySpace | None = None,
    task: AnyTask | None = None,
    *,
    count: int | None = None,
    architectures: pd.DataFrame | Path | str | None = None,
    inherit: Path | str | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    workers: int | str = 1,
    observer: Observer | None = None,
    watch: Watch = lambda work, event, done, total: None,
) -> CollectResult:
    """Trains different architectures of a space from scratch and writes their scores, to fit predictors to.

    Each is trained on the part of the training data that trains the weights in a search (data.train_portion), and
    judged once, at the end, on the rest of it. The test set is not touched. The networks are those of the space's own
    settings, not of its final ones.

    Label number k is the same whatever ran before it: a collection that was stopped and resumed, or resumed with a
    larger `count` or with other workers, has the labels of one that was never stopped, bit for bit but for the seconds.
    Workers have one thread each: so has this process to have (OMP_NUM_THREADS=1) for the bits to be theirs.

    Args:
        space: a name, class or instance; "darts" unless `config` or `architectures` have another.
        task: a data spec, a Dataset or a Task; "digits" unless `config` or `architectures` have another.
        count: how many architectures; collect.count by default, or all that are given.
        architectures: a table or file of those to label, such as the next.csv of a ranking; else random ones. Of a file
            in the directory of a ranking, a proposal or a pipeline, space and data are theirs by default.
        inherit: the directory of a search: nothing is trained, but architectures are judged with the weights that they
            share there, on its data, with batch-norm statistics of their own.
        settings: texts such as "collect.epochs=5", "space.channels=8" or "data.train_portion=0.2".
        config: plain values as `record["config"]` of an earlier collection has them.
        out: the run directory; results/<task>/<space>/labels/seed-<n> by default.
        resume: go on with the collection in `out`, with a larger count also where it is finished.
        workers: how many labels are made at a time, and where; see `nasengine.workers.perform`.
        observer: sees the run; to it a label is an epoch, whose row has the label.
        watch: with several workers, is told of labels as they are finished.

    Raises:
        NasengineError: see nasengine.errors; InterruptedRun after SIGINT or SIGTERM.
    """
    workers = ready_workers(workers)
    if resume and out is not None:
        config = {**read_config(Path(out), "collect"), **(config or {})}
        if architectures is None and (Path(out) / GIVEN).exists():
            architectures = Path(out) / GIVEN
            settings = [f"collect.count={config['collect'].get('count')}", *settings]
    given = [*settings, *([f"collect.count={count}"] if count is not None else [])]
    plan = plan_collection(space, task, architectures=architectures, inherit=inherit, settings=given, config=config)
    path = Path(out) if out is not None else plan.default_out
    job = plan.job()
    if resume:
        _check_count(path, job)
        job.known = {**_known(path / LABELS, job), **_known_of_parts(path, job)}
    begin = Run.resume if resume else Run.start
    with begin(path, "collect", plan.config, plan.facts) as run, seeded(plan.settings.seed, TRAIN):
        run.update({"config": plan.config, "shapes": plain(plan.task.shapes)})  # the count may be another one
        if plan.given is not None:
            table = plan.space.to_table(plan.given, plan.task.shapes)
            run.write_text(GIVEN, table.to_csv(index=False, lineterminator="\n"))
        if workers == 1 or isinstance(job, InheritJob):
            job.publish = lambda text: run.write_text(LABELS, text)
            Loop(run, job, observer or Observer(), plan.settings.checkpoint_seconds)()
            shutil.rmtree(path / _PARTS, ignore_errors=True)  # of workers that were stopped
        else:
            named = {} if task is None or isinstance(task, str) else {"task": task}
            (observer or Observer()).started(run, job, len(job.known) * job.steps_per_epoch)
            _collect_by_parts(run, {"config": plan.config, **named}, job, workers, watch)
        return CollectResult(path, path / LABELS, run.record)


def collect_one(
    number: int,
    architecture: str,
    *,
    task: AnyTask | None = None,
    config: Mapping[str, Any],
    out: Path | str,
    resume: bool = False,
    observer: Observer | None = None,
) -> None:
    """One label of a collection, in a run directory of its own."""
    plan = plan_collection(task=task, config=config)
    job = CollectJob(plan.space, plan.task, plan.settings, {number: Architecture.parse(architecture)})
    begin = Run.resume if resume else Run.start
    with begin(Path(out), "collect", plan.config, plan.facts) as run, seeded(plan.settings.seed, TRAIN):
        job.publish = lambda text: run.write_text(LABELS, text)
        Loop(run, job, observer or Observer(), plan.settings.checkpoint_seconds)()


def _collect_by_parts(
    run: Run, arguments: Mapping[str, Any], job: CollectJob, workers: int | str, watch: Watch
) -> None:
    """Has each label that is not known made in a directory of its own, and puts them together."""
    rows, parts, start = dict(job.known), run.path / _PARTS, time.perf_counter()
    before = float(run.record["seconds"])
    (run.path / CHECKPOINT).unlink(missing_ok=True)  # all that counts is in the labels

    def note(work: Work, event: Event, done: int, total: int) -> None:
        if event in ("stood", "finished"):
            rows[int(work.directory.name)] = _rows(work.directory / LABELS)[0]
            run.write_text(LABELS, csv_text([rows[number] for number in sorted(rows)]))
        watch(work, event, done, total)

    works = [
        Work(
            parts / _part(number),
            "nasengine.collecting:collect_one",
            {"number": number, "architecture": str(job.architectures[number]), **arguments},
            device=job.settings.device,
        )
        for number in job.architectures
        if number not in rows
    ]
    run.update({"status": "running", "device": describe_device(job.device)})
    try:
        perform(works, workers, note)
    except InterruptedRun:
        run.update({"status": "interrupted"})
        raise
    finally:
        run.update({"seconds": round(before + time.perf_counter() - start, 1)})
    result = summary([rows[number] for number in sorted(rows)], job.passes)
    run.update({"status": "finished", "result": {**result, "seconds": run.record["seconds"]}})
    shutil.rmtree(parts, ignore_errors=True)


def _origin(
    architectures: pd.DataFrame | Path | str | None, space: AnySpace | None, task: AnyTask | None
) -> dict[str, Any]:
    """Space and data of the run that wrote a file of architectures, where they are known and no others are given."""
    if not isinstance(architectures, (Path, str)):
        return {}
    above = Path(architectures).expanduser().parent
    record: dict[str, Any] = read_record(above) if (above / RECORD).exists() else {"verb": ""}
    if record["verb"] not in ("propose", "rank", "run"):
        return {}
    config = record["config"]
    return {name: config[name] for name, own in (("space", space), ("data", task)) if own is None and name in config}


def _check_inherits(space: AnySpace | None, task: AnyTask | None, given: Mapping[str, Mapping[str, str]]) -> None:
    """Raises SettingError if a collection that inherits is given what its search has."""
    named: dict[str, object] = {"--space": space, "--data": task if isinstance(task, str) else None}
    trained = [name for name in given["collect"] if name not in ("count", "seed", "device", "checkpoint_seconds")]
    if trained:
        raise SettingError(
            f"Labels by the weights of a search must not be trained, but collect.{trained[0]} is given; leave it "
            "out, or leave out --inherit."
        )
    for option, value in {**named, "--set space...": given["space"], "--set data...": given["data"]}.items():
        if value:
            raise SettingError(
                f"Labels by the weights of a search must be of its space and its data, but {option} is given; leave it "
                "out, or leave out --inherit."
            )


def _check_different(architectures: Sequence[Architecture]) -> None:
    """Raises DataError where an architecture comes twice: its labels could not be told apart."""
    first: dict[Architecture, int] = {}
    for row, architecture in enumerate(architectures, start=1):
        if first.setdefault(architecture, row) != row:
            raise DataError(
                f"Architectures to label must differ, but those of rows {first[architecture]} and {row} are the same; "
                "drop one, and ask for several trainings of each by --set collect.repeats=2."
            )


def _check_count(path: Path, job: CollectJob | InheritJob) -> None:
    """Raises RunError if a collection has begun more labels than are asked for."""
    step = read_record(path).get("step", 0)
    if isinstance(step, int) and step > job.epochs * job.steps_per_epoch:
        raise RunError(
            f"A collection must go on to at least the labels that it has begun, {-(-step // job.steps_per_epoch)} in "
            f"{path}, but --count is {job.epochs}; ask for more or give another --out."
        )


def _known(file: Path, job: CollectJob | InheritJob) -> dict[int, LabelRow]:
    """The labels in the file of a collection by their numbers. Raises RunError if there is one that is another's."""
    if not file.exists():
        return {}
    own = job.space.to_table(list(job.architectures.values()), job.task.shapes).astype(str)
    own = own.drop(columns=list(NUMBERS), errors="ignore")
    numbers = dict(zip(own.itertuples(index=False, name=None), job.architectures, strict=True))
    known = {}
    for place, row in enumerate(_rows(file), start=1):
        number = numbers.get(tuple(str(row.get(str(name))) for name in own))
        if number is None or not set(NUMBERS) <= set(row):
            raise RunError(
                f"{file} must have only labels of its collection, which writes it anew, but row {place} is another's; "
                "move what you added into a file of your own."
            )
        known[number] = row
    return known


def _known_of_parts(path: Path, job: CollectJob | InheritJob) -> dict[int, LabelRow]:
    """The labels that workers had finished when the process that puts them together was killed."""
    files = {number: path / _PARTS / _part(number) / LABELS for number in job.architectures}
    return {number: row for number, file in files.items() if file.exists() for row in _rows(file)}


def _part(number: int) -> str:
    """The name of the directory of a label."""
    return f"{number:05d}"


def _rows(file: Path) -> list[LabelRow]:
    """The rows of a labels.csv; a last line may be cut, and is left out."""
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    return [label(row) for row in csv.DictReader(io.StringIO(whole))]
