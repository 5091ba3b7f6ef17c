"""What a search is made of: space, algorithm, data and settings, resolved before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nasengine.algorithm import Algorithm
from nasengine.config import (
    AnySpace,
    AnyTask,
    SearchSettings,
    plain_plugin,
    resolve_algorithm,
    resolve_device,
    resolve_final,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.precision import require_precision
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Task

GROUPS: Final = ("space", "algo", "data", "search", "final")
SHARED: Final = ("seed", "device", "precision")
"""Settings of a search that what comes after it takes over."""


@dataclass(frozen=True)
class SearchPlan:
    """A search that is resolved but has not begun.

    Attributes:
        final: the space with the settings of the networks that are to be trained, for which limits hold.
    """

    space: Space
    algorithm: Algorithm[Any]
    task: Task
    settings: SearchSettings
    final: Space
    config: dict[str, Any]

    @property
    def default_out(self) -> Path:
        """results/<task>/<space>/<algo>/seed-<n>"""
        return Path("results") / self.task.name / self.space.name / self.algorithm.name / f"seed-{self.settings.seed}"


def plan_search(
    *,
    space: AnySpace | None = None,
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None = None,
    task: AnyTask | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> SearchPlan:
    """Resolves names, settings (texts such as "algo.beta=5") and a stored configuration, in rising order of right."""
    stored = config or {}
    given = split_assignments(list(settings), GROUPS)
    resolved_space = resolve_space(space, stored.get("space", {"name": "darts"}), given["space"])
    resolved_algorithm = resolve_algorithm(algorithm, stored.get("algo", {"name": "rarts"}), given["algo"])
    numbers = resolve_settings(SearchSettings, stored.get("search", {}), given["search"], "search")
    require_precision(numbers.precision, resolve_device(numbers.device))
    resolved_task, data = resolve_task(task, stored.get("data", {}), given["data"])
    final = resolve_final(resolved_space, stored.get("final", {}), given["final"])
    resolved = {
        "space": plain_plugin(SPACES, resolved_space),
        "algo": plain_plugin(ALGORITHMS, resolved_algorithm),
        "data": data,
        "search": plain(numbers),
        **({} if final == resolved_space.final() else {"final": plain_plugin(SPACES, final)}),
    }
    return SearchPlan(resolved_space, resolved_algorithm, resolved_task, numbers, final, resolved)
