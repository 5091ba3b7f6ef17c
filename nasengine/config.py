"""The configuration of a run: named plug-ins and groups of settings, to and from the plain values in run.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from nasengine.algorithm import Algorithm
from nasengine.data import own_task
from nasengine.data.own import absolute
from nasengine.data.sizes import adjusted
from nasengine.errors import DeviceError, RunError, SettingError, UnknownNameError
from nasengine.parallel import ALONE, Ranks, from_first
from nasengine.precision import Precision
from nasengine.registry import ALGORITHMS, SPACES, Registry
from nasengine.run_directory import read_record, read_run_json
from nasengine.settings import BYTES, SECONDS, from_plain, group, override, plain, setting, validate
from nasengine.space import Space
from nasengine.task import Dataset, DataSettings, Task, load_task

T = TypeVar("T")

PRECISION = "of convolutions and matrix products in a network: bfloat16 is faster on GPUs; weights stay float32"

AnySpace = str | type[Space] | type[nn.Module] | Space
"""A name, a class, or an instance; a class of torch modules is a space as well."""

AnyTask = str | Dataset | Task
"""A data spec, data in memory with the loss and measure that fit them, or a task."""


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """On what the latency of networks is measured."""

    runtime: Literal["torch", "onnxruntime"] = setting("torch", "what runs the networks")
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto for the best one there is")
    threads: int = setting(1, "threads of a network on a CPU", low=1)
    batch_size: int = setting(1, "inputs a forward pass", low=1)

    def __post_init__(self) -> None:
        validate(self, "latency")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How long and on what a search runs; the published values of DARTS (arXiv:1806.09055, A.1.1)."""

    epochs: int = setting(50, "passes over the part of the data that trains the weights", low=1)
    batch_size: int = setting(64, "examples a batch", low=1)
    seed: int = setting(0, "of all random numbers", low=0)
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto for the best one there is")
    precision: Precision = setting("float32", PRECISION)
    eval_size: int = setting(5000, "most validation examples that judge an epoch", low=1)
    max_params: int | None = setting(None, "most parameters of the derived network in its final form", low=1)
    max_flops: int | None = setting(None, "most multiply-adds of the derived network in its final form", low=1)
    max_latency: float | None = setting(
        None, "most seconds of a forward pass of that network, such as 5ms", above=0, units=SECONDS
    )
    max_memory: int | None = setting(
        None, "most bytes of its weights and live activations for one input, such as 2MB", low=1, units=BYTES
    )
    latency: LatencySettings = group(LatencySettings, "on what max_latency is measured")
    step_memory: int | None = setting(
        None,
        "most bytes that a step takes beyond weights and optimiser state, such as 500MB: batches are divided",
        low=1,
        units=BYTES,
    )
    cost_weight: float = setting(
        1.0, "weight of expected parameters and multiply-adds above a limit in the loss of the alphas", low=0
    )
    # A text is parsed by the first part of a union that takes it, and "none" would be a str.
    benchmark: None | str = setting(  # noqa: RUF036
        None, "table of the space's known accuracies: every epoch's cell is looked up"
    )
    norms: Literal["batch", "shard"] = setting(
        "batch", "several processes: batch norms over the whole batch, or over the part of each, with few exchanges"
    )
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints within an epoch", low=0)

    def __post_init__(self) -> None:
        validate(self, "search")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Training a derived network from scratch; the published values for CIFAR-10 (arXiv:1806.09055, A.2.1).

    For ImageNet the paper has batch_size=128, epochs=250, lr=0.1, schedule=exponential, decay=0.97, weight_decay=3e-5,
    label_smoothing=0.1. Differs from the paper: the cosine falls at every step, not once an epoch.
    """

    epochs: int = setting(600, "passes over the training set", low=1)
    batch_size: int = setting(96, "examples a batch", low=1)
    seed: int = setting(0, "of all random numbers", low=0)
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto for the best one there is")
    precision: Precision = setting("float32", PRECISION)
    inherit: bool = setting(False, "start from the weights that the search left instead of new ones")
    valid_portion: float = setting(
        0.0,
        "part of each class that is held out to choose by: its score counts, the test set is not touched",
        low=0,
        high=0.9,
    )
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "momentum descent, or adam with decoupled weight decay")
    lr: float = setting(0.025, "learning rate at the start", above=0)
    schedule: Literal["cosine", "exponential"] = setting("cosine", "cosine to 0, or times decay every epoch")
    decay: float = setting(0.97, "exponential: factor of the learning rate an epoch", above=0, high=1)
    momentum: float = setting(0.9, "momentum, or the decay of adamw's mean of gradients", low=0, high=0.999)
    weight_decay: float = setting(3e-4, "weight decay, in sgd part of the gradient", low=0)
    clip: float = setting(5.0, "largest norm of the gradient, 0 for no limit", low=0)
    drop_path: float = setting(
        0.2, "probability of dropping a path at the end; it rises from 0 epoch by epoch", low=0, high=0.99
    )
    auxiliary_weight: float = setting(0.4, "weight of the auxiliary head's loss", low=0)
    label_smoothing: float = setting(0.0, "share of the target that is spread over all classes", low=0, high=0.99)
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints within an epoch", low=0)

    def __post_init__(self) -> None:
        validate(self, "train")


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """How the networks of labels are trained: from scratch, the learning rate falling to 0 by a cosine at every step.

    What is not here is as in 'nasengine train', but for dropped paths, of which there are none.
    """

    count: int = setting(100, "architectures to label", low=1)
    epochs: int = setting(20, "passes of each training over the part of the data that trains the weights", low=1)
    repeats: int = setting(1, "trainings of each architecture from other weights; their mean score counts", low=1)
    batch_size: int = setting(32, "examples a batch", low=1)
    seed: int = setting(0, "of all random numbers", low=0)
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto for the best one there is")
    precision: Precision = setting("float32", PRECISION)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "momentum descent, or adam with decoupled weight decay")
    lr: float = setting(0.025, "learning rate at the start", above=0)
    momentum: float = setting(0.9, "momentum, or the decay of adamw's mean of gradients", low=0, high=0.999)
    weight_decay: float = setting(3e-4, "weight decay, in sgd part of the gradient", low=0)
    clip: float = setting(5.0, "largest norm of the gradient, 0 for no limit", low=0)
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints within a training", low=0)

    def __post_init__(self) -> None:
        validate(self, "collect")

    def training(self, seed: int) -> TrainSettings:
        """The settings of one training."""
        return TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=seed,
            device=self.device,
            precision=self.precision,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
            drop_path=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class ProposeSettings:
    """How many candidates are taken from a search."""

    count: int = setting(
        64, "candidates of the search: what it derives, samples of its distribution, neighbours", low=1
    )

    def __post_init__(self) -> None:
        validate(self, "propose")


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What is ranked, how the predictor is judged, and what is written."""

    top: int | Literal["all"] = setting(20, "best candidates in ranking.csv", low=1)
    next: int = setting(0, "architectures to propose for labelling, by independent Thompson sampling", low=0)
    evaluate: bool = setting(True, "judge the predictor on labels that are held out, where there are at least 20")
    draws: int = setting(5, "held-out parts by which the predictor is judged", low=1)
    sample: int = setting(10_000, "random candidates of a space that is too large to be enumerated", low=1)
    unlabelled: int = setting(10_000, "candidates that the predictor sees without scores, 0 for none", low=0)
    seed: int = setting(0, "of all random numbers but the predictor's", low=0)

    def __post_init__(self) -> None:
        validate(self, "rank")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a pipeline goes from candidates to one network."""

    labels: int = setting(24, "candidates that are scored, for the predictor to be fitted to", low=2)
    score: Literal["inherited", "training"] = setting(
        "inherited", "scored by the weights they share in the supernet, or by a short training of the group collect"
    )
    train: int = setting(4, "best candidates that are trained to the end", low=1)
    seeds: int = setting(1, "final trainings of each, from other weights", low=1)
    against: str = setting("none", "costs that a front weighs against the score, with commas between, or none")
    export: str = setting("pt2,py,safetensors", "formats in which the winner is written, or none")

    def __post_init__(self) -> None:
        validate(self, "run")


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """How a Pareto front is searched: NSGA-II (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002)."""

    against: str = setting("parameters", "costs that are weighed against the score, with commas between")
    population: int = setting(100, "architectures of a generation", low=4)
    generations: int = setting(40, "generations, with the first one", low=1)
    max_params: int | None = setting(None, "most parameters of the network in its final form", low=1)
    max_flops: int | None = setting(None, "most multiply-adds of the network in its final form", low=1)
    max_latency: float | None = setting(
        None, "most seconds of a forward pass of that network, such as 5ms", above=0, units=SECONDS
    )
    max_memory: int | None = setting(
        None, "most bytes of its weights and live activations for one input, such as 2MB", low=1, units=BYTES
    )
    latency: LatencySettings = group(LatencySettings, "on what latency is measured")
    seed: int = setting(0, "of all random numbers", low=0)

    def __post_init__(self) -> None:
        validate(self, "front")


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How algorithms are compared."""

    seeds: int = setting(3, "searches, and trainings of what they find, of each algorithm", low=1)
    budget: float = setting(1200.0, "seconds of a search, its evaluations and its answer among them", above=0)

    def __post_init__(self) -> None:
        validate(self, "compare")


def read_config(path: Path, verb: str, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The configuration of a run of `verb`: of a run directory, or in a run.json; rank 0 reads it for all."""
    if ranks.world > 1:
        return dict(json.loads(from_first(ranks, lambda: json.dumps(read_config(path, verb)).encode())))
    record = read_record(path) if os.path.isdir(path) else read_run_json(path)
    if record["verb"] != verb:
        raise RunError(f"{path} must be of a run of 'nasengine {verb}', but is of one of 'nasengine {record['verb']}'.")
    return dict(record["config"])


def split_assignments(assignments: list[str], groups: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Texts such as "algo.beta=5" by group: {"algo": {"beta": "5"}}."""
    split: dict[str, dict[str, str]] = {name: {} for name in groups}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        group, dot, rest = name.strip().partition(".")
        if not equals or not dot:
            raise SettingError(
                f"A setting must be group.name=value such as {groups[0]}.x=1, but got {assignment!r}; 'nasengine list' "
                "names all."
            )
        if group not in split:
            raise UnknownNameError("group of settings", group, groups)
        split[group][rest] = value.strip()
    return split


def resolve_plugin(
    registry: Registry[T],
    plugin: str | type[T] | T | None,
    stored: Mapping[str, Any],
    changes: Mapping[str, str],
    prefix: str,
) -> T:
    """An instance of what is given, else of what is stored, with the stored settings of that plug-in and changes."""
    stored = dict(stored)
    stored_name = stored.pop("name", None)
    if not isinstance(plugin, (str, type)) and plugin is not None:
        if not isinstance(plugin, registry.base):
            raise SettingError(
                f"A {registry.kind} must be a name, a class or an instance of {registry.base.__name__}, but got a "
                f"{type(plugin).__name__}; give its class."
            )
        return from_plain(type(plugin), override(plain(plugin), type(plugin), changes, prefix), prefix)
    kind = registry.adapted(plugin) if isinstance(plugin, type) else registry[plugin or str(stored_name)]
    base = stored if stored_name is not None and registry.get(stored_name) is kind else {}
    return from_plain(kind, override(base, kind, changes, prefix), prefix)


def resolve_settings(kind: type[T], stored: Mapping[str, Any], changes: Mapping[str, str], prefix: str) -> T:
    """Settings of `kind`: the stored ones with the changes on top."""
    return from_plain(kind, override(stored, kind, changes, prefix), prefix)


def resolve_space(space: AnySpace | None, stored: Mapping[str, Any], changes: Mapping[str, str]) -> Space:
    """`resolve_plugin` for spaces."""
    space = SPACES.adapted(space) if isinstance(space, type) else space
    return resolve_plugin(SPACES, space, stored, changes, "space")


def resolve_final(space: Space, stored: Mapping[str, Any], changes: Mapping[str, str]) -> Space:
    """The space with the settings of the network that is to be trained: `space.final()`, or as it is stored."""
    return resolve_plugin(SPACES, None if stored else space.final(), stored, changes, "final")


def resolve_algorithm(
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None, stored: Mapping[str, Any], changes: Mapping[str, str]
) -> Algorithm[Any]:
    """`resolve_plugin` for algorithms."""
    return resolve_plugin(ALGORITHMS, algorithm, stored, changes, "algo")


def resolve_task(
    task: AnyTask | None, stored: Mapping[str, Any], changes: Mapping[str, str]
) -> tuple[Task, dict[str, Any]]:
    """The task of a data spec, and the plain values from which it comes.

    A Task is used as it is but for the changes, as is one that a spec of one's own names but for what is stored.
    """
    if isinstance(task, Dataset):
        task = Task(dataset=task)
    if isinstance(task, Task):
        settings = resolve_settings(DataSettings, plain(task.settings), changes, "data")
        resolved = adjusted(task, settings) if changes else task
        return resolved, {"name": task.name, **plain(settings)}
    if not isinstance(task, str | None):
        raise SettingError(f"Data must be a text such as 'digits', a Dataset or a Task, but got {type(task).__name__}.")
    stored_spec = absolute(str(stored.get("name", "digits")))
    spec = absolute(task) if task else stored_spec
    stored = {key: value for key, value in stored.items() if key != "name"} if spec == stored_spec else {}
    own = own_task(spec)
    base = {**plain(own.settings), **stored} if own else stored
    settings = resolve_settings(DataSettings, base, changes, "data")
    resolved = adjusted(own, settings) if own else load_task(spec, settings)
    return resolved, {"name": spec, **plain(settings)}


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; "auto" takes CUDA, then MPS, then the CPU. Raises DeviceError."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise NotImplementedError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = (
            ["cpu"]
            + (["cuda"] if torch.cuda.is_available() else [])
            + (["mps"] if torch.backends.mps.is_available() else [])
        )
        raise DeviceError(
            f"The device must be one of this machine, {', '.join(there)} or auto, but got {name!r}."
        ) from None
    return device


def plain_plugin(registry: Registry[T], plugin: T) -> dict[str, Any]:
    """A plug-in as plain values: its name and its settings."""
    return {"name": registry.spec(plugin), **plain(plugin)}
