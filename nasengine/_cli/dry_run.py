"""`--dry-run`: what a search or a training would cost, from a few real steps."""

from __future__ import annotations

import dataclasses
import math
import time
from functools import partial
from pathlib import Path

import torch
import typer

from nasengine import cost
from nasengine._cli.progress import duration
from nasengine.algorithm import state_dict
from nasengine.architecture import Architecture
from nasengine.calibrating import calibrated, epochs_of, training_seconds
from nasengine.collecting import CollectPlan
from nasengine.compare_plan import ComparePlan
from nasengine.config import CollectSettings, SearchSettings, TrainSettings
from nasengine.descent import in_words
from nasengine.labelling import CollectJob, InheritJob
from nasengine.launch import telling
from nasengine.loop import Observer
from nasengine.microbatches import within_memory
from nasengine.run_plan import RunPlan
from nasengine.search_plan import SearchPlan
from nasengine.searching import SearchJob
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.task import Task
from nasengine.train_plan import TrainPlan
from nasengine.training import TrainJob
from nasengine.wording import counted
from nasengine.workers import checked_workers

_PROBE_BATCH, _PROBES, _ARCHITECTURES = 8, 3, 5
_LONG = 5.0  # seconds of a step
_TRIED = within_memory("the steps of a dry run", begun=False)


class _Notes(Observer):
    """Says what takes long before it does."""

    def note(self, text: str) -> None:
        typer.echo(f"  {text}", err=True)


@_TRIED
def search_cost(plan: SearchPlan) -> None:
    """Prints the cost of the supernet's search, and of training a random architecture of its space."""
    job, _ = _print_search(plan)
    defaults = TrainSettings(device=plan.settings.device, precision=plan.settings.precision)
    fitting = min(defaults.batch_size, len(plan.task.dataset.train_targets))
    title = "final training of a random architecture, at the defaults of 'nasengine train':"
    settings = dataclasses.replace(defaults, batch_size=fitting)
    _print_training(title, plan.final, _random(job), plan.task, settings)


def _random(job: SearchJob) -> Architecture:
    return job.space.sample(job.algorithm.supernet(job.state).choices, generator(job.settings.seed))


def _print_search(plan: SearchPlan) -> tuple[SearchJob, float]:
    """The search, and the seconds of its steps."""
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, _Notes(), final=plan.final)
    steps = job.epochs * job.steps_per_epoch
    job.fit_memory()
    supernet = plan.algorithm.supernet(job.state)
    # a schedule that fits the steps of the probe, so that all its phases are timed
    job.state = plan.algorithm.init(supernet, generator(plan.settings.seed), 2 + _PROBES)
    step = cost.step_cost(lambda: job.step(0), lambda: _held(state_dict(job.state)), _PROBES, job.device)
    length = f"{counted(job.epochs, 'epoch')} of {counted(job.steps_per_epoch, 'step')}{_lowered(plan.settings)}"
    typer.echo(f"search: {plan.space.name} by {plan.algorithm.name} on {plan.task.name}, {length}")
    typer.echo(f"  supernet: {cost.parameters(supernet):,} parameters, {counted(len(supernet.choices), 'choice')}")
    seconds = _print_step(step, steps, str(job.division), _growing(job))
    if job.costs is not None:
        found = in_words(job.limits, job.costs.full(job.costs.nearest(job.limits), job.limits))
        typer.echo(f"  limits: {in_words(job.limits)}; the nearest network found has {found}")
    return job, seconds


@_TRIED
def training_cost(plan: TrainPlan) -> None:
    """Prints the cost of a training."""
    title = f"training: {plan.space.name} on {plan.task.name}"
    _print_training(title, plan.space, plan.architecture, plan.task, plan.settings)


@_TRIED
def collecting_cost(plan: CollectPlan) -> None:
    """Prints the cost of all labels, by steps of the first few architectures."""
    _print_labels(plan.job(), plan.settings, plan.inherit)


@_TRIED
def running_cost(plan: RunPlan, workers: int | str) -> None:
    """Prints the stages of a pipeline, and about how long those take that train or score."""
    number = checked_workers(workers)
    own, task, count = plan.settings, plan.task, int(plan.config["propose"]["count"])
    job, searching = _print_search(plan.search)
    typer.echo(f"propose: {counted(count, 'candidate')} of the search, of which {own.labels} are scored")
    if own.score == "inherited":
        scored: CollectJob | InheritJob = InheritJob(job, dict.fromkeys(range(own.labels), _random(job)))
    else:
        labels = dataclasses.replace(plan.collect, count=own.labels)
        scored = CollectPlan(plan.search.space, task, labels, {}).job()
    labelling = _print_labels(scored, plan.collect, Path("the search"))
    typer.echo(f"rank: all candidates by {plan.predictor.name}")
    runs = own.train * own.seeds
    each = f", with {own.seeds} seeds each" if own.seeds > 1 else ""
    title = f"train: the best {counted(own.train, 'candidate')}{each}; for one training of a random architecture:"
    training = runs * _print_training(title, plan.search.final, _random(job), task, plan.train)
    typer.echo(f"  {counted(runs, 'training')}: about {duration(training)}")
    front = [f"front: against {own.against}"] if plan.front is not None else []
    export = [f"export: {own.export}"] if own.export != "none" else []
    typer.echo("\n".join(["test: the winner alone, once", *front, *export, "report: report.html"]))
    many = number if isinstance(number, int) else 1
    shared = f", labels and trainings {many} at a time, if they do not slow each other" if many > 1 else ""
    typer.echo(f"in all: about {duration(searching + (labelling + training) / many)}{shared}, without evaluation")


def _print_labels(job: CollectJob | InheritJob, settings: CollectSettings, inherit: Path | None) -> float:
    """Labels, and the seconds that they take."""
    if isinstance(job, InheritJob):
        start = time.perf_counter()
        job.step(0)
        seconds = (time.perf_counter() - start) * job.epochs
        of = f"{counted(job.epochs, 'architecture')} with the weights of {inherit}"
        typer.echo(f"labels: {of}, about {duration(seconds)}")
        return seconds
    steps, seconds, memory = job.epochs * job.steps_per_epoch, 0.0, 0
    trainings = [job.begin(number, 0) for number in range(min(_ARCHITECTURES, job.epochs))]
    for training in trainings:
        measured = cost.step_cost(partial(training.step, 0), partial(_held_by, training), _PROBES, job.device)
        seconds, memory = seconds + measured.seconds / len(trainings), max(memory, measured.memory)
    sizes = [cost.parameters(training.network) for training in trainings]
    often = f"{settings.repeats} times " if settings.repeats > 1 else ""
    length = (
        f"{often}{counted(settings.epochs, 'epoch')} of {counted(job.steps_per_pass, 'step')} each{_lowered(settings)}"
    )
    typer.echo(f"labels: {counted(job.epochs, 'architecture')} of {job.space.name} on {job.task.name}, {length}")
    typer.echo(f"  the first {len(sizes)}: {min(sizes):,} to {max(sizes):,} parameters")
    return _print_step(cost.StepCost(seconds, memory), steps, f"a step of {settings.batch_size}")


@_TRIED
def comparing_cost(plan: ComparePlan, workers: int | str) -> None:
    """Prints the epochs that every algorithm gets within the budget, and how long all of it takes."""
    found = {contender.label: calibrated(plan, contender, workers) for contender in plan.contenders}
    epochs = epochs_of(found, plan.settings.budget)
    count = plan.settings.seeds
    typer.echo(
        f"comparison on {plan.space.name} and {plan.task.name}, budget {duration(plan.settings.budget)} a search"
    )
    for label, calibration in found.items():
        taken = duration(calibration.seconds(epochs[label]))
        length = f"{counted(epochs[label], 'epoch')} of {counted(calibration.steps, 'step')}"
        typer.echo(f"  {label}: {length}, about {taken} a search")
    searching = count * sum(calibration.seconds(epochs[label]) for label, calibration in found.items())
    training = count * len(found) * training_seconds(plan, workers)
    runs = count * len(found)
    typer.echo(f"  {runs} searches: about {duration(searching)}; {runs} trainings: about {duration(training)}")
    many = workers if isinstance(workers, int) else 1
    shared = f", {many} at a time, if they do not slow each other" if many > 1 else ""
    typer.echo(f"  in all: about {duration((searching + training) / many)}{shared}")


def _print_training(title: str, space: Space, architecture: Architecture, task: Task, settings: TrainSettings) -> float:
    with telling(_Notes().note):
        return _timed(title, space, architecture, task, settings)


def _timed(title: str, space: Space, architecture: Architecture, task: Task, settings: TrainSettings) -> float:
    whole = TrainJob(space, architecture, task, settings)
    batch = min(_PROBE_BATCH, settings.batch_size)
    probe = TrainJob(space, architecture, task, dataclasses.replace(settings, batch_size=batch))
    measured = cost.step_cost(lambda: probe.step(0), lambda: _held(probe.state_dict()), _PROBES, probe.device)
    scale = settings.batch_size / batch
    held, weights = _held(probe.state_dict()), _held(probe.network.state_dict())
    growing = max(0, measured.memory - held - weights)  # gradients are as many bytes as the weights
    step = cost.StepCost(measured.seconds * scale, held + weights + round(growing * scale))
    if step.seconds < _LONG:  # a large network is timed by a small batch, others as they train
        step = dataclasses.replace(step, seconds=cost.step_seconds(lambda: whole.step(0), _PROBES))
    flops = cost.multiply_adds(lambda: space.build(architecture, task.shapes), task.shapes)
    work = f"{flops:,} multiply-adds{_lowered(settings)}"
    typer.echo(title)
    typer.echo(f"  network: {cost.parameters(probe.network):,} parameters, {work}")
    return _print_step(step, settings.epochs * whole.steps_per_epoch, str(whole.division), round(growing * scale))


def _lowered(settings: SearchSettings | TrainSettings | CollectSettings) -> str:
    return "" if settings.precision == "float32" else f", in {settings.precision}"


def _growing(job: SearchJob) -> int:
    """How many bytes of a step are there for its examples, of which as many count as are evaluated at a time."""
    examples = math.ceil(job.division.examples / job.division.count)
    half = examples // 2
    if half < 2:  # batch norms may need 2
        return 0
    return max(0, job.step_bytes(examples, 1) - job.step_bytes(examples - half, 1)) * examples // half


def _print_step(step: cost.StepCost, steps: int, what: str, growing: int = 0) -> float:
    """What steps take; the seconds of all."""
    hours = step.seconds * steps / 3600
    took = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
    share = (
        f", of which {growing / 2**20:,.0f} grow with the {'micro-' if 'micro' in what else ''}batch" if growing else ""
    )
    typer.echo(f"  {what}: about {step.seconds:.2f} s and {step.memory / 2**20:,.0f} MiB{share}")
    typer.echo(f"  {counted(steps, 'step')}: about {took}, without evaluation")
    return step.seconds * steps


def _held_by(training: TrainJob) -> int:
    return _held(training.state_dict())


def _held(state: object) -> int:
    tensors: list[torch.Tensor] = []

    def collect(part: object) -> None:
        if isinstance(part, torch.Tensor):
            tensors.append(part)
        elif isinstance(part, dict):
            for value in part.values():
                collect(value)

    collect(state)
    return cost.bytes_of(tensors)
