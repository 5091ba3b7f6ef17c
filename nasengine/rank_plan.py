"""What a ranking is made of: tables, space, predictor and settings, resolved before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nasengine.config import (
    AnySpace,
    AnyTask,
    RankSettings,
    plain_plugin,
    resolve_settings,
    resolve_space,
    resolve_task,
    split_assignments,
)
from nasengine.errors import SettingError
from nasengine.labels import Source, read_source
from nasengine.predictor import CIFAR, PREDICTORS, Predictor
from nasengine.registry import SPACES
from nasengine.settings import from_plain, override, plain
from nasengine.space import Space
from nasengine.task import Shapes

if TYPE_CHECKING:
    import pandas as pd

GROUPS: Final = ("space", "data", "predictor", "rank")
DEFAULT: Final = "gaussian-process"


@dataclass(frozen=True)
class RankPlan:
    """A ranking that is resolved but has not begun."""

    space: Space
    shapes: Shapes
    predictor: Predictor
    settings: RankSettings
    labels: Source
    candidates: Source | None
    column: str | None
    config: dict[str, Any]
    facts: dict[str, Any]

    @property
    def default_out(self) -> Path:
        """results/<space>/rank"""
        return Path("results") / self.space.name / "rank"


def plan_ranking(
    space: AnySpace | None = None,
    labels: pd.DataFrame | Path | str | None = None,
    *,
    predictor: str | type[Predictor] | Predictor | None = None,
    score: str | None = None,
    candidates: pd.DataFrame | Path | str | None = None,
    task: AnyTask | Shapes | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> RankPlan:
    """Reads the tables and resolves everything else; see `rank`."""
    stored, given = dict(config or {}), split_assignments(list(settings), GROUPS)
    numbers = resolve_settings(RankSettings, stored.get("rank", {}), given["rank"], "rank")
    files = stored.get("files", {})
    labels = labels if labels is not None else files.get("labels")
    candidates = candidates if candidates is not None else files.get("candidates")
    score = score if score is not None else files.get("score")
    if labels is None:
        raise SettingError("A ranking must have labels to fit to, but none are given; name their file by --labels.")
    source = read_source(labels, "labels")
    collected = source.record.get("config", {})
    of_space = stored.get("space") or collected.get("space")
    if space is None and not of_space:
        raise SettingError(
            f"The space of the labels must be known, but {source.name} does not tell it; name it by --space."
        )
    resolved = resolve_space(space, of_space or {}, given["space"])
    shapes, data = _shapes(task, stored, source.record, given["data"])
    model = resolve_predictor(predictor, stored.get("predictor", {}), given["predictor"], resolved, shapes)
    others = None if candidates is None else read_source(candidates, "candidates")
    final = {"space": plain_plugin(SPACES, resolved), "predictor": plain_plugin(PREDICTORS, model)}
    final |= {"rank": plain(numbers), "shapes": plain(shapes), **({"data": data} if data else {})}
    others_path = others.facts.get("path") if others is not None else None
    final["files"] = {"labels": source.facts.get("path"), "candidates": others_path, "score": score}
    facts = {"labels": source.facts, "candidates": others.facts if others is not None else {"source": "the space"}}
    return RankPlan(resolved, shapes, model, numbers, source, others, score, final, facts)


def _shapes(
    task: AnyTask | Shapes | None, stored: Mapping[str, Any], record: Mapping[str, Any], changes: Mapping[str, str]
) -> tuple[Shapes, dict[str, Any]]:
    """The shapes of the data, which are loaded only where nothing tells them, and the data as plain values if known."""
    if isinstance(task, Shapes):
        return task, {}
    collected = record.get("config", {}).get("data", {})
    data = stored.get("data", collected)
    told = stored.get("shapes", record.get("shapes"))
    if task is None and not changes and told is not None:
        return from_plain(Shapes, told, "shapes"), dict(data)
    if task is None and not changes and not data:
        return CIFAR, {}
    resolved, values = resolve_task(task, data, changes)
    return resolved.shapes, values


def resolve_predictor(
    predictor: str | type[Predictor] | Predictor | None,
    stored: Mapping[str, Any],
    changes: Mapping[str, str],
    space: Space,
    shapes: Shapes,
) -> Predictor:
    """`config.resolve_plugin` for predictors, which also have a space and shapes that are no settings."""
    stored = dict(stored)
    name = str(stored.pop("name", DEFAULT))
    kind: type[Predictor]
    base: Mapping[str, Any] = {}
    if isinstance(predictor, type):
        kind = PREDICTORS.adapted(predictor)
    elif predictor is None or isinstance(predictor, str):
        kind = PREDICTORS[predictor or name]
        base = stored if PREDICTORS.get(name) is kind else {}
    else:
        kind, base = PREDICTORS.adapted(type(predictor)), plain(predictor)
    values = override(base, kind, changes, "predictor")
    made = from_plain(kind, values, "predictor", {"space": space, "shapes": shapes})
    made.check()
    return made
