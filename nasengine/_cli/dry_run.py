"""`--dry-run`: what a search or a training would cost, from a few real steps."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import torch
import typer

from nasengine import cost
from nasengine._cli.progress import duration
from nasengine.algorithm import state_dict
from nasengine.architecture import Architecture
from nasengine.calibrating import calibrated, epochs_of, training_seconds
from nasengine.collecting import CollectPlan
from nasengine.compare_plan import ComparePlan
from nasengine.config import TrainSettings
from nasengine.descent import in_words
from nasengine.labelling import InheritJob
from nasengine.search_plan import SearchPlan
from nasengine.searching import SearchJob
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.task import Task
from nasengine.train_plan import TrainPlan
from nasengine.training import TrainJob
from nasengine.wording import counted

_PROBE_BATCH, _PROBES, _ARCHITECTURES = 8, 3, 5


def search_cost(plan: SearchPlan) -> None:
    """Prints the cost of the supernet's search, and of training a random architecture of its space."""
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, final=plan.final)
    steps = job.epochs * job.steps_per_epoch
    supernet = plan.algorithm.supernet(job.state)
    # a schedule that fits the steps of the probe, so that all its phases are timed
    job.state = plan.algorithm.init(supernet, generator(plan.settings.seed), 1 + _PROBES)
    step = cost.step_cost(lambda: job.step(0), lambda: _held(state_dict(job.state)), _PROBES)
    length = f"{counted(job.epochs, 'epoch')} of {counted(job.steps_per_epoch, 'step')}"
    typer.echo(f"search: {plan.space.name} by {plan.algorithm.name} on {plan.task.name}, {length}")
    typer.echo(f"  supernet: {cost.parameters(supernet):,} parameters, {counted(len(supernet.choices), 'choice')}")
    _print_step(step, steps, plan.settings.batch_size)
    if job.costs is not None:
        found = in_words(job.limits, job.costs.full(job.costs.nearest(job.limits), job.limits))
        typer.echo(f"  limits: {in_words(job.limits)}; the nearest network found has {found}")
    architecture = plan.space.sample(supernet.choices, generator(plan.settings.seed))
    defaults = TrainSettings(device=plan.settings.device)
    fitting = min(defaults.batch_size, len(plan.task.dataset.train_targets))
    title = "final training of a random architecture, at the defaults of 'nasengine train':"
    settings = dataclasses.replace(defaults, batch_size=fitting)
    _print_training(title, plan.final, architecture, plan.task, settings)


def training_cost(plan: TrainPlan) -> None:
    """Prints the cost of a training."""
    title = f"training: {plan.space.name} on {plan.task.name}"
    _print_training(title, plan.space, plan.architecture, plan.task, plan.settings)


def collecting_cost(plan: CollectPlan) -> None:
    """Prints the cost of all labels, by steps of the first few architectures."""
    job, settings = plan.job(), plan.settings
    if isinstance(job, InheritJob):
        start = time.perf_counter()
        job.step(0)
        seconds = (time.perf_counter() - start) * job.epochs
        typer.echo(
            f"labels: {counted(job.epochs, 'architecture')} with the weights of {plan.inherit}, about {seconds:,.0f} s"
        )
        return
    steps, seconds, memory = job.epochs * job.steps_per_epoch, 0.0, 0
    trainings = [job.begin(number, 0) for number in range(min(_ARCHITECTURES, job.epochs))]
    for training in trainings:
        measured = cost.step_cost(partial(training.step, 0), partial(_held_by, training), _PROBES)
        seconds, memory = seconds + measured.seconds / len(trainings), max(memory, measured.memory)
    sizes = [cost.parameters(training.network) for training in trainings]
    often = f"{settings.repeats} times " if settings.repeats > 1 else ""
    length = f"{often}{counted(settings.epochs, 'epoch')} of {counted(job.steps_per_pass, 'step')} each"
    typer.echo(f"labels: {counted(settings.count, 'architecture')} of {plan.space.name} on {plan.task.name}, {length}")
    typer.echo(f"  the first {len(sizes)}: {min(sizes):,} to {max(sizes):,} parameters")
    _print_step(cost.StepCost(seconds, memory), steps, settings.batch_size)


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


def _print_training(title: str, space: Space, architecture: Architecture, task: Task, settings: TrainSettings) -> None:
    steps = settings.epochs * TrainJob(space, architecture, task, settings).steps_per_epoch
    batch = min(_PROBE_BATCH, settings.batch_size)
    probe = TrainJob(space, architecture, task, dataclasses.replace(settings, batch_size=batch))
    measured = cost.step_cost(lambda: probe.step(0), lambda: _held(probe.state_dict()), _PROBES)
    scale = settings.batch_size / batch
    held, weights = _held(probe.state_dict()), _held(probe.network.state_dict())
    growing = max(0, measured.memory - held - weights)  # what backward keeps, less the weights
    step = cost.StepCost(measured.seconds * scale, held + weights + round(growing * scale))
    flops = cost.multiply_adds(lambda: space.build(architecture, task.shapes), task.shapes)
    typer.echo(title)
    typer.echo(f"  network: {cost.parameters(probe.network):,} parameters, {flops:,} multiply-adds")
    _print_step(step, steps, settings.batch_size)


def _print_step(step: cost.StepCost, steps: int, batch_size: int) -> None:
    hours = step.seconds * steps / 3600
    duration = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
    typer.echo(f"  a step of {batch_size}: about {step.seconds:.2f} s and {step.memory / 2**20:,.0f} MiB")
    typer.echo(f"  {counted(steps, 'step')}: about {duration}, without evaluation")


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
