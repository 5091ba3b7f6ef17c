"""Final training: the derived network from scratch, in the loop; the test set is touched once, at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nasengine import cost
from nasengine.algorithm import cosine, descend, weight_optimizer
from nasengine.architecture import Architecture
from nasengine.batches import Batches, evaluation_batches
from nasengine.config import (
    AnySpace,
    AnyTask,
    TrainSettings,
    read_config,
    resolve_device,
    resolve_settings,
)
from nasengine.errors import RunError
from nasengine.evaluation import evaluating, score
from nasengine.interface import Interface
from nasengine.loop import Loop, Observer, seeded
from nasengine.microbatches import Division, micro_batches, outputs_of
from nasengine.operations import DropPath
from nasengine.precision import at_precision
from nasengine.run_directory import CHECKPOINT, Run
from nasengine.searching import INHERITED, TRAIN, WEIGHTS, on_device, packed
from nasengine.space import Space
from nasengine.task import Augment, Task
from nasengine.train_plan import TrainPlan, parts, plan_training
from nasengine.trained import NETWORK, open_training


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gave.

    Attributes:
        path: the run directory.
        test_score: the mean of the task's measure over the test set: for classes the accuracy, 0 to 1.
        valid_score: the same over the part of the training set that was held out; of the two scores there is one.
        record: all of run.json; `record["result"]` has the score as test_<measure> or valid_<measure>, such as
            test_accuracy.
    """

    path: Path
    test_score: float | None
    valid_score: float | None
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
        self.held_out: Tensor | None = None
        train, held_out = parts(task, settings)
        if indices is None:
            indices, self.held_out = train, held_out
        self.batches = Batches(
            task,
            indices,
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
        self.division = Division.of(network, settings.batch_size)

    def step(self, step: int) -> dict[str, Tensor]:
        inputs, targets = self.batches[step]
        set_drop_path(self.network, self.settings.drop_path * (step // self.steps_per_epoch) / self.epochs)
        with micro_batches(self.division.count):
            outputs = at_precision(self.settings.precision, partial(outputs_of, self.network), inputs)
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
        row: dict[str, float | int | str] = {"lr": self.rate(epoch * self.steps_per_epoch - 1)}
        if self.held_out is not None:
            row[f"valid_{self.task.measure.name}"] = self.valid_score()
        return row

    def valid_score(self) -> float:
        """On the part of the training set that is held out."""
        data = self.task.dataset
        return self._score(data.train_inputs[self.held_out], data.train_targets[self.held_out])

    def test_score(self) -> float:
        """On the test set."""
        return self._score(self.task.dataset.test_inputs, self.task.dataset.test_targets)

    def _score(self, inputs: Tensor, targets: Tensor) -> float:
        batches = evaluation_batches(self.task, inputs, targets, 2 * self.settings.batch_size, self.device)
        with evaluating(self.network):
            forward = partial(at_precision, self.settings.precision, self.network)
            return score(forward, batches, self.task.measure)

    def finish(self, run: Run) -> dict[str, Any]:
        measure = self.task.measure.name
        if self.held_out is None:
            scores = {f"test_{measure}": self.test_score(), "test_size": len(self.task.dataset.test_targets)}
        else:
            scores = {f"valid_{measure}": self.valid_score(), "valid_size": len(self.held_out)}
        run.write_bytes(NETWORK, packed(self.network.state_dict()))
        return {
            **scores,
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
    parameters = list(network.parameters())
    return weight_optimizer(parameters, settings.optimizer, settings.lr, settings.momentum, settings.weight_decay)


@contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """A block in which cuDNN tries its convolutions on the first batch, since all have one shape.

    Not where deterministic algorithms are asked for: what is found fastest may differ from run to run.
    """
    cudnn = torch.backends.cudnn
    before, exact = cudnn.benchmark, cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    cudnn.benchmark = before or (device.type == "cuda" and not exact)
    try:
        yield
    finally:
        cudnn.benchmark = before


def set_drop_path(network: torch.nn.Module, probability: float) -> None:
    """Sets the probability of all DropPath modules."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.probability = probability


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
        directory.update({"interface": Interface.of(plan.task).plain()})
        with tuned(job.device):
            result = Loop(directory, job, observer or Observer(), plan.settings.checkpoint_seconds)()
        test, valid = (result.get(f"{part}_{plan.task.measure.name}") for part in ("test", "valid"))
        return TrainResult(path, test, valid, directory.record)


def score_on_test(path: Path | str, task: Task) -> float:
    """The mean of the task's measure over the test set, for the network of a finished training.

    Raises:
        RunError: there is none that is finished, or its network is damaged.
    """
    trained = open_training(path, task)
    settings = resolve_settings(TrainSettings, trained.record["config"]["train"], {}, "train")
    device = resolve_device(settings.device)
    network, data = on_device(trained.network, device), task.dataset
    batches = evaluation_batches(task, data.test_inputs, data.test_targets, 2 * settings.batch_size, device)
    with evaluating(network):
        return score(partial(at_precision, settings.precision, network), batches, task.measure)


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
