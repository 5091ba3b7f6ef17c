"""The labels of a collection: which architectures there are, and how each is trained and judged."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine import cost
from nasengine.architecture import Architecture
from nasengine.batches import evaluation_batches
from nasengine.config import CollectSettings, resolve_device
from nasengine.errors import SettingError
from nasengine.evaluation import evaluating, score
from nasengine.loop import not_finite, seed_all, seeded
from nasengine.microbatches import Division
from nasengine.run_directory import Row, Run
from nasengine.searching import TRAIN, SearchJob
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.tables import csv_text
from nasengine.task import Shapes, Task
from nasengine.training import TrainJob
from nasengine.trial import check_network

LABELS: Final = "labels.csv"
NUMBERS: Final = ("score", "epochs", "seconds", "parameters")
LabelRow = dict[str, float | int | str]
_DRAW, _LABEL = 6, 7  # streams of random numbers, beside those of a search
_ROUND, _PATIENCE = 100, 20


def label(row: Mapping[str, str]) -> LabelRow:
    """A row of a table of labels with its numbers as numbers, where they are some."""
    with suppress(KeyError, ValueError, TypeError):
        numbers = float(row["score"]), int(row["epochs"]), float(row["seconds"]), int(row["parameters"])
        return {**row, **dict(zip(NUMBERS, numbers, strict=True))}
    return {name: value for name, value in row.items() if name not in NUMBERS}


def check(space: Space, task: Task, settings: CollectSettings) -> None:
    """Tries the network of a space on the data. Raises ArchitectureError."""
    if space.searchable:
        with seeded(settings.seed, _DRAW):
            check_network(space, task.shapes, resolve_device(settings.device))


def drawn(space: Space, task: Task, settings: CollectSettings) -> list[Architecture]:
    """The random architectures of a collection."""
    return draw(space, task.shapes, settings.count, generator(settings.seed, _DRAW))


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


class Labelling:
    """What the loop needs to make labels, of which each is an epoch.

    Args:
        architectures: by the numbers of their labels.
        passes: whole passes of a training that does not diverge, 0 where there is none.

    Attributes:
        known: finished labels by their numbers, which are not made again.
    """

    known: Mapping[int, LabelRow] = MappingProxyType({})

    def __init__(self, space: Space, task: Task, architectures: Mapping[int, Architecture], passes: int) -> None:
        self.space, self.task, self.architectures, self.passes = space, task, architectures, passes
        self.numbers = list(architectures)
        self.rows: list[LabelRow] = []
        self.division = Division()  # labels do not depend on the memory of who makes them
        self.publish: Callable[[str], object] = lambda text: None

    def row(self, number: int, value: float, epochs: int, seconds: float, parameters: int) -> LabelRow:
        """The row of a label: the columns of `Space.to_table`, and its numbers."""
        numbers = {"score": value, "epochs": epochs, "seconds": round(seconds, 3), "parameters": parameters}
        (row,) = self.space.to_table([self.architectures[number]], self.task.shapes).to_dict("records")
        return {**{str(name): value for name, value in row.items() if name not in NUMBERS}, **numbers}

    def add(self, number: int, row: LabelRow) -> Row:
        """Publishes a row; what of it is worth telling."""
        self.rows.append(row)
        self.publish(csv_text([*self.rows, *self._known_later()]))
        return {
            "score": row["score"],
            "label_epochs": row["epochs"],
            "label_seconds": row["seconds"],
            "parameters": row["parameters"],
            "genotype": self.space.write(self.architectures[number]),
        }

    def _known_later(self) -> list[LabelRow]:
        """The known labels whose turn has not come: workers made them, and they stay in the file."""
        return [self.known[number] for number in self.numbers[len(self.rows) :] if number in self.known]

    def finish(self, run: Run) -> dict[str, Any]:
        del run
        self.publish(csv_text(self.rows))
        return summary(self.rows, self.passes)


def summary(rows: Sequence[LabelRow], epochs: int) -> dict[str, Any]:
    """The result of a collection whose trainings take so many epochs."""
    scores = [float(row["score"]) for row in rows]
    return {
        "labels": len(scores),
        "best_score": max(scores),
        "median_score": statistics.median(scores),
        "worst_score": min(scores),
        "diverged": sum(row["epochs"] != epochs for row in rows),
        "label_seconds": round(sum(float(row["seconds"]) for row in rows), 1),
    }


class CollectJob(Labelling):
    """Labels by short trainings.

    The random numbers of a label depend on the seed and on its number alone, not on what ran before it. A training
    whose loss or weights are no longer finite ends: it has the score of `chance`, and its label fewer epochs.
    """

    def __init__(
        self, space: Space, task: Task, settings: CollectSettings, architectures: Mapping[int, Architecture]
    ) -> None:
        super().__init__(space, task, architectures, settings.epochs)
        self.settings, self.device = settings, resolve_device(settings.device)
        self.train_indices, self.valid_indices = task.split(settings.seed)
        self.chance = chance(task, self.train_indices, self.valid_indices)
        with seeded(settings.seed, _DRAW):
            trial = self.begin(self.numbers[0], 0)  # what does not fit is told before anything is written
        self.steps_per_pass = trial.steps_per_epoch
        self.steps_per_training = settings.epochs * self.steps_per_pass
        self.epochs, self.steps_per_epoch = len(self.numbers), settings.repeats * self.steps_per_training
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
        order, place = divmod(step, self.steps_per_epoch)
        number = self.numbers[order]
        if number in self.known:
            return self._metrics()
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
        return self._metrics()

    def end_epoch(self, epoch: int) -> Row:
        number, label = self.numbers[epoch - 1], self._label
        if number in self.known:
            return self.add(number, self.known[number])
        value = statistics.fmean(label.scores)
        return self.add(number, self.row(number, value, label.epochs, label.seconds, label.parameters))

    def state_dict(self) -> dict[str, Any]:
        training = self._training.state_dict() if self._training is not None else None
        return {"rows": self.rows, "label": asdict(self._label), "training": training}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self._label, self._training = list(state["rows"]), _Label(**state["label"]), None
        if state["training"] is not None:
            self._training = self.begin(self.numbers[len(self.rows)], len(self._label.scores))
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

    def _metrics(self) -> dict[str, Tensor]:
        names = ("train_loss", f"train_{self.task.measure.name}")
        return {name: torch.tensor(float(self._label.metrics.get(name, 0.0)), device=self.device) for name in names}


class InheritJob(Labelling):
    """Labels by the weights that architectures share in the supernet of a search, with statistics of their own."""

    def __init__(self, search: SearchJob, architectures: Mapping[int, Architecture]) -> None:
        super().__init__(search.space, search.task, architectures, 0)
        self.search, self.device = search, search.device
        self.supernet = search.algorithm.supernet(search.state)
        self.epochs, self.steps_per_epoch = len(architectures), 1

    def step(self, step: int) -> dict[str, Tensor]:
        start, number = time.perf_counter(), self.numbers[step]
        if number in self.known:
            self._row = dict(self.known[number])
        else:
            value, parameters = self.search.judge.measured(self.supernet, self.architectures[number])
            self._row = self.row(number, value, 0, time.perf_counter() - start, parameters)
        return {f"valid_{self.task.measure.name}": torch.tensor(float(self._row["score"]))}

    def end_epoch(self, epoch: int) -> Row:
        return self.add(self.numbers[epoch - 1], self._row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])
