"""Labels for performance predictors: random architectures of a space, each trained from scratch and judged."""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine import cost
from nasengine.architecture import Architecture
from nasengine.batches import evaluation_batches
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
from nasengine.errors import DataError, RunError, SettingError
from nasengine.evaluation import evaluating, score
from nasengine.loop import Loop, Observer, not_finite, seed_all, seeded
from nasengine.registry import SPACES
from nasengine.run_directory import Row, Run, read_record
from nasengine.searching import TRAIN
from nasengine.seeding import generator
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.tables import csv_text
from nasengine.task import Shapes, Task
from nasengine.training import TrainJob
from nasengine.trial import check_network

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("space", "data", "collect")
LABELS: Final = "labels.csv"
NUMBERS: Final = ("score", "epochs", "seconds", "parameters")
_DRAW, _LABEL = 6, 7  # streams of random numbers, beside those of a search
_ROUND, _PATIENCE = 100, 20


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


def draw(space: Space, shapes: Shapes, count: int, rng: torch.Generator) -> list[Architecture]:
    """The first `count` different random architectures; more of them begin with the same ones.

    Those with equal arrays (`Space.encode`) are the same network, of which the first is taken.

    Raises:
        SettingError: so many cannot be found.
    """
    choices, found, known = space.choices(shapes), list[Architecture](), set[tuple[bytes, ...]]()
    idle = 0
    while len(found) < count:
        batch = [space.sample(choices, rng) for _ in range(_ROUND)]
        graphs = space.encode(batch, shapes)
        for row, architecture in enumerate(batch):
            there = (graphs.operations[row] >= 0).nonzero()[0]
            nodes = there.max(initial=-1) + 1  # how many columns follow depends on the others
            used = graphs.operations[row, :nodes], graphs.adjacency[row, :nodes, :nodes], graphs.numbers[row]
            key = tuple(array.tobytes() for array in used)
            idle = idle + 1 if key in known else 0
            if key not in known:
                known.add(key)
                found.append(architecture)
        if idle > 1000 + _PATIENCE * len(found):
            raise SettingError(
                f"collect.count must be at most the number of different architectures, but {count} are asked for and "
                f"random ones of space {space.name!r} came to {len(found)}; ask for fewer by --count."
            )
    return found[:count]


def chance(task: Task, train: Tensor, valid: Tensor) -> float:
    """The score on the examples `valid` of the constant that fits the examples `train` best.

    That is the most frequent class, or the mean of each target. Both are indices of the training set, (N,) int64.
    """
    data = task.dataset
    targets = data.train_targets[train]
    counts = targets if data.is_regression else F.one_hot(targets, len(data.classes)).float()
    inputs, truth = data.train_inputs[valid], data.train_targets[valid]
    batches = evaluation_batches(task, inputs, truth, 1024, torch.device("cpu"))
    return score(lambda part: counts.mean(0).expand(len(part), -1), batches, task.measure)


@dataclass
class _Label:
    """A label under way: scores and fewest whole passes of its trainings so far, and the last finite metrics."""

    scores: list[float] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    parameters: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class CollectJob:
    """A collection for the loop, to which a label is an epoch.

    The random numbers of a label depend on the seed and on its number alone, not on what ran before it. A training
    whose loss or weights are no longer finite ends: it has the score of `chance`, and its label fewer epochs.
    """

    def __init__(self, space: Space, task: Task, settings: CollectSettings) -> None:
        self.space, self.task, self.settings = space, task, settings
        self.device = resolve_device(settings.device)
        self.train_indices, self.valid_indices = task.split(settings.seed)
        if space.searchable:
            with seeded(settings.seed, _DRAW):
                check_network(space, task.shapes, self.device)
        self.architectures = draw(space, task.shapes, settings.count, generator(settings.seed, _DRAW))
        self.chance = chance(task, self.train_indices, self.valid_indices)
        self.rows: list[dict[str, float | int | str]] = []
        self.publish: Callable[[str], object] = lambda text: None
        with seeded(settings.seed, _DRAW):
            first = self.begin(0, 0)  # what does not fit is told before anything is written
        self.steps_per_pass = first.steps_per_epoch
        self.steps_per_training = settings.epochs * self.steps_per_pass
        self.epochs, self.steps_per_epoch = settings.count, settings.repeats * self.steps_per_training
        self._training: TrainJob | None = None
        self._label = _Label()

    def begin(self, number: int, repeat: int) -> TrainJob:
        """A training of a label, both numbered from 0; sets the global random states."""
        seed = int(torch.randint(2**31, (), generator=generator(self.settings.seed, _LABEL, number, repeat)))
        seed_all(seed, TRAIN)
        return TrainJob(
            self.space,
            self.architectures[number],
            self.task,
            self.settings.training(seed),
            indices=self.train_indices,
            augment=self.task.search_augment,
        )

    def step(self, step: int) -> dict[str, Tensor]:
        start = time.perf_counter()
        number, place = divmod(step, self.steps_per_epoch)
        repeat, place = divmod(place, self.steps_per_training)
        if repeat == place == 0:
            self._label = _Label(epochs=self.settings.epochs)
        label = self._label
        if place == 0:
            self._training = self.begin(number, repeat)
            label.parameters = cost.parameters(self._training.network)
        metrics = self._training.step(place) if self._training is not None else {}
        if self._training is not None and not_finite({**metrics, "state": self._training.state_dict()}):
            self._diverged(place // self.steps_per_pass)
        if self._training is not None:
            label.metrics = {name: value.item() for name, value in metrics.items()}
        if place == self.steps_per_training - 1:
            self._judge()
        label.seconds += time.perf_counter() - start
        names = ("train_loss", f"train_{self.task.measure.name}")
        return {name: torch.tensor(float(label.metrics.get(name, 0.0)), device=self.device) for name in names}

    def end_epoch(self, epoch: int) -> Row:
        label, architecture = self._label, self.architectures[epoch - 1]
        numbers: dict[str, float | int | str] = {
            "score": statistics.fmean(label.scores),
            "epochs": label.epochs,
            "seconds": round(label.seconds, 3),
            "parameters": label.parameters,
        }
        (row,) = self.space.to_table([architecture], self.task.shapes).to_dict("records")
        kept = {str(name): value for name, value in row.items() if name not in NUMBERS}
        self.rows.append({**kept, **numbers})
        self.publish(self._table())
        return {
            "score": numbers["score"],
            "label_epochs": label.epochs,
            "label_seconds": numbers["seconds"],
            "parameters": label.parameters,
            "genotype": self.space.write(architecture),
        }

    def finish(self, run: Run) -> dict[str, Any]:
        del run
        self.publish(self._table())
        scores = [float(row["score"]) for row in self.rows]
        return {
            "labels": len(scores),
            "best_score": max(scores),
            "median_score": statistics.median(scores),
            "worst_score": min(scores),
            "diverged": sum(row["epochs"] != self.settings.epochs for row in self.rows),
        }

    def state_dict(self) -> dict[str, Any]:
        training = self._training.state_dict() if self._training is not None else None
        return {"rows": self.rows, "label": asdict(self._label), "training": training}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self._label, self._training = list(state["rows"]), _Label(**state["label"]), None
        if state["training"] is not None:
            self._training = self.begin(len(self.rows), len(self._label.scores))
            self._training.load_state_dict(state["training"])

    def _diverged(self, epochs: int) -> None:
        """The training under way ends after so many whole passes."""
        self._training, self._label.epochs = None, min(self._label.epochs, epochs)

    def _judge(self) -> None:
        """Adds the score of the training under way, which ends."""
        value = self._score(self._training.network) if self._training is not None else math.nan
        if not math.isfinite(value):
            self._diverged(self.settings.epochs - 1)
            value = self.chance
        self._label.scores.append(value)
        self._training = None

    def _score(self, network: nn.Module) -> float:
        data, chosen = self.task.dataset, self.valid_indices
        inputs, targets = data.train_inputs[chosen], data.train_targets[chosen]
        batches = evaluation_batches(self.task, inputs, targets, 4 * self.settings.batch_size, self.device)
        with evaluating(network):
            return score(network, batches, self.task.measure)

    def _table(self) -> str:
        return csv_text(self.rows)


@dataclass(frozen=True)
class CollectPlan:
    """A collection that is resolved but has not begun."""

    space: Space
    task: Task
    settings: CollectSettings
    config: dict[str, Any]

    @property
    def default_out(self) -> Path:
        """results/<task>/<space>/labels/seed-<n>"""
        return Path("results") / self.task.name / self.space.name / "labels" / f"seed-{self.settings.seed}"


def plan_collection(
    space: AnySpace | None = None,
    task: AnyTask | None = None,
    *,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> CollectPlan:
    """Resolves a space, data, settings (texts such as "collect.epochs=5") and a stored configuration."""
    stored = config or {}
    given = split_assignments(list(settings), GROUPS)
    resolved = resolve_space(space, stored.get("space", {"name": "darts"}), given["space"])
    numbers = resolve_settings(CollectSettings, stored.get("collect", {}), given["collect"], "collect")
    resolve_device(numbers.device)
    resolved_task, data = resolve_task(task, stored.get("data", {}), given["data"])
    final = {"space": plain_plugin(SPACES, resolved), "data": data, "collect": plain(numbers)}
    return CollectPlan(resolved, resolved_task, numbers, final)


def collect(
    space: AnySpace | None = None,
    task: AnyTask | None = None,
    *,
    count: int | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> CollectResult:
    """Trains different random architectures of a space from scratch and writes their scores, to fit predictors to.

    Each is trained on the part of the training data that trains the weights in a search (data.train_portion), and
    judged once, at the end, on the rest of it. The test set is not touched. The networks are those of the space's own
    settings, not of its final ones.

    Label number k is the same whatever ran before it: a collection that was stopped and resumed, or resumed with a
    larger `count`, has the labels of one that was never stopped, bit for bit but for the seconds.

    Args:
        space: a name, class or instance; "darts" unless `config` has another.
        task: a data spec, a Dataset or a Task; "digits" unless `config` has another.
        count: how many architectures; collect.count by default.
        settings: texts such as "collect.epochs=5", "space.channels=8" or "data.train_portion=0.2".
        config: plain values as `record["config"]` of an earlier collection has them.
        out: the run directory; results/<task>/<space>/labels/seed-<n> by default.
        resume: go on with the collection in `out`, with a larger count also where it is finished.
        observer: sees the run; to it a label is an epoch, whose row has the label.

    Raises:
        NasengineError: see nasengine.errors; InterruptedRun after SIGINT or SIGTERM.
    """
    if resume and out is not None:
        config = {**read_config(Path(out), "collect"), **(config or {})}
    given = [*settings, *([f"collect.count={count}"] if count is not None else [])]
    plan = plan_collection(space, task, settings=given, config=config)
    path = Path(out) if out is not None else plan.default_out
    job = CollectJob(plan.space, plan.task, plan.settings)
    if resume:
        _check_count(path, job)
        _check_rows(path / LABELS, job)
    facts = {"task": plan.task.name, "fingerprint": plan.task.fingerprint}
    begin = Run.resume if resume else Run.start
    with begin(path, "collect", plan.config, facts) as run, seeded(plan.settings.seed, TRAIN):
        run.update({"config": plan.config, "shapes": plain(plan.task.shapes)})  # the count may be another one
        job.publish = lambda text: run.write_text(LABELS, text)
        Loop(run, job, observer or Observer(), plan.settings.checkpoint_seconds)()
        return CollectResult(path, path / LABELS, run.record)


def _check_count(path: Path, job: CollectJob) -> None:
    """Raises RunError if a collection has begun more labels than are asked for."""
    step = read_record(path).get("step", 0)
    if isinstance(step, int) and step > job.epochs * job.steps_per_epoch:
        raise RunError(
            f"A collection must go on to at least the labels that it has begun, {-(-step // job.steps_per_epoch)} in "
            f"{path}, but --count is {job.epochs}; ask for more or give another --out."
        )


def _check_rows(file: Path, job: CollectJob) -> None:
    """Raises RunError if the labels have a row that the collection does not write; a last line may be cut."""
    try:
        whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    except OSError:
        return
    own = (
        job.space.to_table(job.architectures, job.task.shapes).astype(str).drop(columns=list(NUMBERS), errors="ignore")
    )
    known = set(own.itertuples(index=False, name=None))
    for number, row in enumerate(csv.DictReader(io.StringIO(whole)), start=1):
        if tuple(row.get(str(name)) for name in own) not in known:
            raise RunError(
                f"{file} must have only labels of its collection, which writes it anew, but row {number} is another's; "
                "move what you added into a file of your own."
            )
