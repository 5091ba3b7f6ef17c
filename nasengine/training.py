"""Final training: the derived network from scratch, in the loop; the test set is touched once, at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nasengine import cost
from nasengine.algorithm import cosine, descend
from nasengine.architecture import Architecture
from nasengine.batches import Batches, evaluation_batches
from nasengine.config import (
    AnySpace,
    AnyTask,
    TrainSettings,
    plain_plugin,
    read_config,
    resolve_device,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.errors import ArchitectureError, RunError, SettingError
from nasengine.evaluation import evaluating, score
from nasengine.loop import Loop, Observer, seeded
from nasengine.operations import DropPath
from nasengine.registry import SPACES
from nasengine.run_directory import CHECKPOINT, Run, read_record
from nasengine.searching import INHERITED, TRAIN, WEIGHTS, on_device, packed
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Augment, Task

GROUPS = ("space", "data", "train")


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gave.

    Attributes:
        path: the run directory.
        test_score: the mean of the task's measure over the test set: for classes the accuracy, 0 to 1.
        record: all of run.json; `record["result"]` has the score as test_<measure>, such as test_accuracy.
    """

    path: Path
    test_score: float
    record: dict[str, Any]


class TrainJob:
    """A final training for the loop.

    Args:
        indices: of the training examples, (N,) int64; all of them by default.
        augment: of the training images; that of the final training by default.
    """

    def __init__(
        self,
        space: Space,
        architecture: Architecture,
        task: Task,
        settings: TrainSettings,
        inherited: Mapping[str, Tensor] | None = None,
        *,
        indices: Tensor | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.space, self.architecture, self.task, self.settings = space, architecture, task, settings
        self.device = resolve_device(settings.device)
        if settings.label_smoothing and task.loss is not F.cross_entropy:
            raise SettingError(
                f"train.label_smoothing must be 0 unless the loss is the cross-entropy, which that of {task.name} is "
                f"not, but got {settings.label_smoothing}; leave it out."
            )
        self.batches = Batches(
            task,
            torch.arange(len(task.dataset.train_targets)) if indices is None else indices,
            settings.batch_size,
            seed=settings.seed,
            stream=TRAIN,
            augment=task.final_augment if augment is None else augment,
            device=self.device,
        )
        self.epochs, self.steps_per_epoch = settings.epochs, len(self.batches)
        with seeded(settings.seed, WEIGHTS):
            network = space.build(architecture, task.shapes)
        if inherited is not None:
            network.load_state_dict(inherited)
        self.network = on_device(network, self.device)
        self.optimizer = _optimizer(self.network, settings)

    def step(self, step: int) -> dict[str, Tensor]:
        inputs, targets = self.batches[step]
        set_drop_path(self.network, self.settings.drop_path * (step // self.steps_per_epoch) / self.epochs)
        outputs = self.network(inputs)
        logits, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self._loss(logits, targets)
        total = loss if auxiliary is None else loss + self.settings.auxiliary_weight * self._loss(auxiliary, targets)
        weights = list(self.network.parameters())
        gradients = torch.autograd.grad(total, weights, materialize_grads=True)
        descend(self.optimizer, weights, gradients, self.rate(step), self.settings.clip)
        measure = self.task.measure
        return {
            "train_loss": loss.detach(),
            f"train_{measure.name}": measure(logits.detach(), targets) / len(targets),
        }

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if self.settings.schedule == "exponential":
            return self.settings.lr * self.settings.decay ** (step // self.steps_per_epoch)
        return cosine(self.settings.lr, 0.0, step / (self.epochs * self.steps_per_epoch))

    def end_epoch(self, epoch: int) -> dict[str, float | int | str]:
        return {"lr": self.rate(epoch * self.steps_per_epoch - 1)}

    def finish(self, run: Run) -> dict[str, Any]:
        data = self.task.dataset
        batches = evaluation_batches(
            self.task, data.test_inputs, data.test_targets, 2 * self.settings.batch_size, self.device
        )
        with evaluating(self.network):
            test = score(self.network, batches, self.task.measure)
        run.write_bytes("network.safetensors", packed(self.network.state_dict()))
        return {
            f"test_{self.task.measure.name}": test,
            "test_size": len(data.test_targets),
            "parameters": cost.parameters(self.network),
            "multiply_adds": cost.multiply_adds(
                lambda: self.space.build(self.architecture, self.task.shapes), self.task.shapes
            ),
            "genotype": self.space.write(self.architecture),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.settings.label_smoothing:
            return F.cross_entropy(logits, targets, label_smoothing=self.settings.label_smoothing)
        return self.task.loss(logits, targets)


def _optimizer(network: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters, decay = network.parameters(), settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.lr, (settings.momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=decay)


def set_drop_path(network: torch.nn.Module, probability: float) -> None:
    """Sets the probability of all DropPath modules."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.probability = probability


@dataclass(frozen=True)
class TrainPlan:
    """A training that is resolved but has not begun."""

    space: Space
    architecture: Architecture
    task: Task
    settings: TrainSettings
    config: dict[str, Any]
    default_out: Path


def plan_training(
    run: Path | str | None = None,
    *,
    genotype: str | None = None,
    architecture: Architecture | Path | str | None = None,
    space: AnySpace | None = None,
    task: AnyTask | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> TrainPlan:
    """Resolves what is to be trained: the architecture of a search, of a text, or of a stored configuration."""
    stored = dict(config or {})
    given = sum(value is not None for value in (run, genotype, architecture))
    if given > 1 or (given == 0 and "architecture" not in stored):
        raise RunError(f"A training must have one of a run, a genotype and an architecture, but got {given} of them.")
    found = _search_record(Path(run)) if run is not None else None
    if found is not None:
        stored.setdefault("data", found["config"]["data"])
        shared = {name: value for name, value in found["config"]["search"].items() if name in ("seed", "device")}
        stored.setdefault("train", shared)
    changes = split_assignments(list(settings), GROUPS)
    resolved = _final_space(space, stored, found, changes["space"])
    chosen = _chosen(resolved, found, genotype, architecture, stored.get("architecture"))
    numbers = resolve_settings(TrainSettings, stored.get("train", {}), changes["train"], "train")
    resolve_device(numbers.device)
    resolved_task, data = resolve_task(task, stored.get("data", {}), changes["data"])
    resolved.check(resolved.choices(resolved_task.shapes), chosen)
    final = {
        "space": plain_plugin(SPACES, resolved),
        "architecture": str(chosen),
        "data": data,
        "train": plain(numbers),
    }
    alone = Path("results") / resolved_task.name / resolved.name / "final" / f"seed-{numbers.seed}"
    out = alone if run is None else Path(run) / "final"
    return TrainPlan(resolved, chosen, resolved_task, numbers, final, out)


def train(
    run: Path | str | None = None,
    *,
    genotype: str | None = None,
    architecture: Architecture | Path | str | None = None,
    space: AnySpace | None = None,
    task: AnyTask | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> TrainResult:
    """Trains a derived network from scratch and measures it on the test set once, at the end.

    Args:
        run: directory of a finished search, whose architecture, space and data are taken.
        genotype: the architecture in the text form of the space, in place of `run`.
        architecture: an Architecture, its text, or a file with it, in place of `run`.
        space: a name, class or instance; the final form of the search's space by default.
        task: a data spec, a Dataset or a Task; the search's by default, else "digits".
        settings: texts such as "train.epochs=40" or "space.channels=16".
        config: plain values as `record["config"]` of an earlier training has them.
        out: the run directory; RUN/final by default.
        resume: go on with the training in `out`.
        observer: sees the training.
    """
    where = Path(out) if out is not None else Path(run) / "final" if run is not None else None
    if resume and where is not None:
        config = {**read_config(where, "train"), **(config or {})}
    plan = plan_training(
        run, genotype=genotype, architecture=architecture, space=space, task=task, settings=settings, config=config
    )
    path = where or plan.default_out
    begun = resume and (path / CHECKPOINT).exists()
    inherited = _inherited(plan, run) if plan.settings.inherit and not begun else None
    job = TrainJob(plan.space, plan.architecture, plan.task, plan.settings, inherited)
    facts = {"task": plan.task.name, "fingerprint": plan.task.fingerprint}
    begin = Run.resume if resume else Run.start
    with begin(path, "train", plan.config, facts) as directory, seeded(plan.settings.seed, TRAIN):
        result = Loop(directory, job, observer or Observer(), plan.settings.checkpoint_seconds)()
        return TrainResult(path, float(result[f"test_{plan.task.measure.name}"]), directory.record)


def _inherited(plan: TrainPlan, run: Path | str | None) -> dict[str, Tensor]:
    """The weights that the search in `run` left for its architecture. Raises RunError if they do not fit."""
    if run is None:
        raise RunError(
            "A training that inherits must be of the directory of a search, which has the weights, but got none; give "
            "RUN or leave out --inherit."
        )
    try:
        weights = load_file(Path(run) / INHERITED)
    except (OSError, SafetensorError):
        raise RunError(
            f"A training that inherits needs {INHERITED} in {run}, but it is not there or not readable: searches of "
            "some spaces leave none; leave out --inherit."
        ) from None
    with torch.device("meta"):
        alone = plan.space.build(plan.architecture, plan.task.shapes).state_dict()
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in alone.items()}:
        raise RunError(
            f"A training that inherits must build the network of the search in {run}, but its settings make another "
            "one; leave out --inherit or the settings of the space."
        )
    return weights


def _search_record(path: Path) -> dict[str, Any]:
    """The record of a finished search."""
    record = read_record(path)
    if record["verb"] != "search":
        raise RunError(f"A training needs the run of a search, but {path} holds one of 'nasengine {record['verb']}'.")
    if record["status"] != "finished":
        advice = "search anew" if record["status"] == "diverged" else "go on with it by 'nasengine search --resume'"
        state = "diverged" if record["status"] == "diverged" else "not finished"
        raise RunError(f"A training needs a finished search, but the one in {path} is {state}; {advice}.")
    return record


def _final_space(
    space: AnySpace | None,
    stored: Mapping[str, Any],
    found: Mapping[str, Any] | None,
    changes: Mapping[str, str],
) -> Space:
    if isinstance(space, Space):
        base = space
    elif space is None and "space" in stored:
        base = resolve_space(None, stored["space"], {})
    else:
        base = resolve_space(space, found["config"]["space"] if found else {"name": "darts"}, {}).final()
    return resolve_space(base, {}, changes)


def _chosen(
    space: Space,
    found: Mapping[str, Any] | None,
    genotype: str | None,
    architecture: Architecture | Path | str | None,
    stored: str | None,
) -> Architecture:
    if genotype is not None:
        return space.read(genotype)
    if isinstance(architecture, Architecture):
        return architecture
    if architecture is not None:
        return read_architecture(space, architecture)
    if found is None:
        return Architecture.parse(str(stored))
    return Architecture.parse(str(found.get("result", {}).get("architecture", "")))


def read_architecture(space: Space, source: Path | str) -> Architecture:
    """An architecture or genotype from a text, or from the file that a path names."""
    text = str(source)
    if isinstance(source, Path) or "=" not in text:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise ArchitectureError(
                f"An architecture must be a readable file, but {source} is not: {reason}."
            ) from None
    return space.read(text)
