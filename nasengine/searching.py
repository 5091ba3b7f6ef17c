"""Search: a supernet, an algorithm and a task in the loop; from the API and the command line alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasengine import alphas as alphas_
from nasengine.algorithm import Algorithm, load_state_dict, state_dict
from nasengine.architecture import Architecture
from nasengine.config import (
    SearchSettings,
    plain_plugin,
    read_config,
    resolve_algorithm,
    resolve_device,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.drawing import changes, draw
from nasengine.evaluation import accuracy, evaluating, recalibrate
from nasengine.loop import Loop, Observer, seeded
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.run import Row, Run
from nasengine.seeding import generator
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Augment, Batch, Batches, Task, evaluation_batches

GROUPS = ("space", "algo", "data", "search")
TRAIN, VALID, WEIGHTS, ALPHAS, RECALIBRATION = range(5)  # streams of random numbers
_RECALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class SearchResult:
    """What a finished search found.

    Attributes:
        path: the run directory.
        architecture: the one that was found.
        text: the architecture in the form that other tools exchange.
        record: all of run.json; `record["result"]` has the accuracies.
    """

    path: Path
    architecture: Architecture
    text: str
    record: dict[str, Any]


class SearchJob:
    """A search for the loop."""

    def __init__(
        self,
        space: Space,
        algorithm: Algorithm[Any],
        task: Task,
        settings: SearchSettings,
        observer: Observer | None = None,
    ) -> None:
        self.space, self.algorithm, self.task, self.settings = space, algorithm, task, settings
        self.observer = observer or Observer()
        self.device = resolve_device(settings.device)
        self.train_indices, self.valid_indices = task.split(settings.seed)
        self.train = self._batches(self.train_indices, TRAIN)
        self.valid = self._batches(self.valid_indices, VALID)
        self.epochs, self.steps_per_epoch = settings.epochs, len(self.train)
        with seeded(settings.seed, WEIGHTS):
            supernet = on_device(space.supernet(task.shapes, task.loss), self.device)
            alphas = generator(settings.seed, ALPHAS)
            self.state = algorithm.init(supernet, alphas, self.epochs * self.steps_per_epoch)
        self.architecture: Architecture | None = None

    def step(self, step: int) -> dict[str, Tensor]:
        train, valid = self.train[step], self.valid[step]
        info = self.algorithm.step(self.state, train, valid)
        right = self.task.correct
        return {
            "train_loss": info.train_loss,
            "valid_loss": info.valid_loss,
            "train_accuracy": right(info.train_outputs, train.targets) / len(train.targets),
            "valid_accuracy": right(info.valid_outputs, valid.targets) / len(valid.targets),
        }

    def end_epoch(self, epoch: int) -> Row:
        architecture = self.algorithm.derive(self.state)
        changed = (
            changes(self.space.graphs(self.architecture), self.space.graphs(architecture)) if self.architecture else []
        )
        self.architecture = architecture
        for text in (*changed, self.space.warning(architecture)):
            if text:
                self.observer.note(text)
        supernet, derived = self.judge(architecture)
        mixture = self.algorithm.mixture(self.state)
        return {
            "supernet_accuracy": supernet,
            "derived_accuracy": derived,
            "gap": supernet - derived,
            "alpha_entropy": alphas_.entropy({k: v for k, v in mixture.items() if isinstance(v, Tensor)}),
            "changed": len(changed),
            **self.space.indicators(architecture),
            "architecture": self.space.write(architecture),
        }

    def judge(self, architecture: Architecture) -> tuple[float, float]:
        """Validation accuracy of the supernet under its mixture, and of an architecture with inherited weights."""
        supernet, mixture = self.algorithm.supernet(self.state), self.algorithm.mixture(self.state)
        with evaluating(supernet):
            soft = accuracy(lambda inputs: supernet(inputs, mixture), self._held_out(), self.task.correct)
        network = supernet.extract(architecture)
        recalibrate(network, self._recalibration())
        with evaluating(network):
            return soft, accuracy(network, self._held_out(), self.task.correct)

    def finish(self, run: Run) -> dict[str, Any]:
        architecture = self.algorithm.derive(self.state)
        self.space.check(self.space.choices(self.task.shapes), architecture)
        supernet, derived = self.judge(architecture)
        text, graphs = self.space.write(architecture), self.space.graphs(architecture)
        for suffix in ("svg", "png"):
            run.write_file(f"cells.{suffix}", lambda path: draw(graphs, path))
        run.write_text("genotype.txt", text + "\n")
        run.write_text("architecture.txt", str(architecture).replace(" ", "\n") + "\n")
        return {
            "architecture": str(architecture),
            "genotype": text,
            "supernet_accuracy": supernet,
            "derived_accuracy": derived,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "algorithm": state_dict(self.state),
            "architecture": str(self.architecture) if self.architecture else "",
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_state_dict(self.state, state["algorithm"])
        self.architecture = Architecture.parse(state["architecture"]) if state["architecture"] else None

    def _batches(self, indices: Tensor, stream: int) -> Batches:
        seed, augment = self.settings.seed, self.task.search_augment
        return Batches(
            self.task, indices, self.settings.batch_size, seed=seed, stream=stream, augment=augment, device=self.device
        )

    def _held_out(self) -> Iterator[Batch]:
        data, chosen = self.task.dataset, self.valid_indices[: self.settings.eval_size]
        size = 2 * self.settings.batch_size
        return evaluation_batches(self.task, data.train_inputs[chosen], data.train_targets[chosen], size, self.device)

    def _recalibration(self) -> Iterable[Batch]:
        batches = Batches(
            self.task,
            self.train_indices,
            self.settings.batch_size,
            seed=self.settings.seed,
            stream=RECALIBRATION,
            augment=Augment(),
            device=self.device,
        )
        return (batches[step] for step in range(min(_RECALIBRATION_BATCHES, len(batches))))


def on_device(module: nn.Module, device: torch.device) -> Any:
    """The module on a device, in the memory format in which convolutions are fastest."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True)
class SearchPlan:
    """A search that is resolved but has not begun."""

    space: Space
    algorithm: Algorithm[Any]
    task: Task
    settings: SearchSettings
    config: dict[str, Any]

    @property
    def default_out(self) -> Path:
        """results/<task>/<space>/<algo>/seed-<n>"""
        return Path("results") / self.task.name / self.space.name / self.algorithm.name / f"seed-{self.settings.seed}"


def plan_search(
    *,
    space: str | type[Space] | Space | None = None,
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None = None,
    task: str | Task | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> SearchPlan:
    """Resolves names, settings (texts such as "algo.beta=5") and a stored configuration, in rising order of right."""
    stored = config or {}
    given = split_assignments(list(settings), GROUPS)
    resolved_space = resolve_space(space, stored.get("space", {"name": "darts"}), given["space"])
    resolved_algorithm = resolve_algorithm(algorithm, stored.get("algo", {"name": "rarts"}), given["algo"])
    numbers = resolve_settings(SearchSettings, stored.get("search", {}), given["search"], "search")
    resolve_device(numbers.device)
    resolved_task, data = resolve_task(task, stored.get("data", {}), given["data"])
    resolved = {
        "space": plain_plugin(SPACES, resolved_space),
        "algo": plain_plugin(ALGORITHMS, resolved_algorithm),
        "data": data,
        "search": plain(numbers),
    }
    return SearchPlan(resolved_space, resolved_algorithm, resolved_task, numbers, resolved)


def search(
    space: str | type[Space] | Space | None = None,
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None = None,
    task: str | Task | None = None,
    *,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> SearchResult:
    """Searches a space with an algorithm on a task.

    Args:
        space: a name, class or instance; "darts" unless `config` has another.
        algorithm: a name, class or instance; "rarts" unless `config` has another.
        task: a data spec such as "digits" or "cifar10:PATH", or a Task; "digits" unless `config` has another.
        settings: texts such as "algo.beta=5" or "search.epochs=10".
        config: plain values as `record["config"]` of an earlier run has them.
        out: the run directory; results/<task>/<space>/<algo>/seed-<n> by default.
        resume: go on with the run in `out`, whose configuration is then the default.
        observer: sees the run.

    Raises:
        NasengineError: see nasengine.errors; InterruptedRun after SIGINT or SIGTERM.
    """
    if resume and out is not None:
        config = {**read_config(Path(out), "search"), **(config or {})}
    plan = plan_search(space=space, algorithm=algorithm, task=task, settings=settings, config=config)
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, observer)
    path = Path(out) if out is not None else plan.default_out
    facts = {"task": plan.task.name, "fingerprint": plan.task.fingerprint}
    begin = Run.resume if resume else Run.start
    with begin(path, "search", plan.config, facts) as run, seeded(plan.settings.seed, TRAIN):
        result = Loop(run, job, observer or Observer(), plan.settings.checkpoint_seconds)()
        architecture = Architecture.parse(result["architecture"])
        return SearchResult(path, architecture, str(result["genotype"]), run.record)
