"""What a final training is made of: architecture, space, data and settings, resolved before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.architecture import Architecture
from nasengine.config import (
    AnySpace,
    AnyTask,
    TrainSettings,
    plain_plugin,
    resolve_device,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.errors import ArchitectureError, RunError, SettingError
from nasengine.precision import require_precision
from nasengine.registry import SPACES
from nasengine.run_directory import read_record
from nasengine.search_plan import SHARED
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Task

GROUPS: Final = ("space", "data", "train")


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
        shared = {name: value for name, value in found["config"]["search"].items() if name in SHARED}
        stored.setdefault("train", shared)
    changes = split_assignments(list(settings), GROUPS)
    resolved = _final_space(space, stored, found, changes["space"])
    chosen = _chosen(resolved, found, genotype, architecture, stored.get("architecture"))
    numbers = resolve_settings(TrainSettings, stored.get("train", {}), changes["train"], "train")
    require_precision(numbers.precision, resolve_device(numbers.device))
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
    if space is None and found is not None and "final" in found["config"] and "space" not in stored:
        base = resolve_space(None, found["config"]["final"], {})
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


def parts(task: Task, settings: TrainSettings) -> tuple[Tensor, Tensor | None]:
    """Indices (N,) of the training set to train on, and of what is held out, if anything is.

    Raises:
        SettingError: the loss cannot be smoothed as the settings ask for.
        DataError: there is nothing to hold out.
    """
    if settings.label_smoothing and task.loss is not F.cross_entropy:
        raise SettingError(
            f"train.label_smoothing must be 0 unless the loss is the cross-entropy, which that of {task.name} is "
            f"not, but got {settings.label_smoothing}; leave it out."
        )
    if settings.valid_portion:
        return task.hold_out(settings.valid_portion)
    return torch.arange(len(task.dataset.train_targets)), None
