"""What a pipeline is made of: space, algorithm, data and the settings of its stages, resolved before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nasengine.algorithm import Algorithm
from nasengine.config import (
    AnySpace,
    AnyTask,
    CollectSettings,
    FrontSettings,
    ProposeSettings,
    RankSettings,
    RunSettings,
    TrainSettings,
    plain_plugin,
    resolve_settings,
    split_assignments,
)
from nasengine.errors import SettingError
from nasengine.exporting import checked_formats
from nasengine.pareto import require_pymoo
from nasengine.predictor import PREDICTORS, Predictor
from nasengine.pricing import chosen_costs
from nasengine.rank_plan import resolve_predictor
from nasengine.registry import SPACES
from nasengine.runtimes import Bench
from nasengine.search_plan import GROUPS as SEARCH_GROUPS
from nasengine.search_plan import SHARED, SearchPlan, plan_search
from nasengine.settings import plain
from nasengine.task import Task
from nasengine.train_plan import parts

GROUPS: Final = (*SEARCH_GROUPS, "propose", "collect", "predictor", "rank", "train", "front", "run")


@dataclass(frozen=True)
class RunPlan:
    """A pipeline that is resolved but has not begun.

    Attributes:
        search: its first stage.
        front: None where none is searched.
        config: all of it as plain values.
    """

    search: SearchPlan
    collect: CollectSettings
    train: TrainSettings
    predictor: Predictor
    front: FrontSettings | None
    settings: RunSettings
    config: dict[str, Any]

    @property
    def task(self) -> Task:
        return self.search.task

    @property
    def default_out(self) -> Path:
        """results/<task>/<space>/<algo>/run-seed-<n>"""
        search = self.search.default_out
        return search.with_name(f"run-{search.name}")


def plan_run(
    *,
    space: AnySpace | None = None,
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None = None,
    task: AnyTask | None = None,
    predictor: str | type[Predictor] | Predictor | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> RunPlan:
    """Resolves names, settings (texts such as "train.epochs=30") and a stored configuration; see `run`."""
    stored, given = dict(config or {}), split_assignments(list(settings), GROUPS)
    searched = [text for text in settings if text.strip().partition(".")[0] in SEARCH_GROUPS]
    search = plan_search(space=space, algorithm=algorithm, task=task, settings=searched, config=stored)
    shared = {name: getattr(search.settings, name) for name in SHARED}
    seed = {"seed": search.settings.seed}
    propose = resolve_settings(ProposeSettings, stored.get("propose", {}), given["propose"], "propose")
    collect = resolve_settings(CollectSettings, {**shared, **stored.get("collect", {})}, given["collect"], "collect")
    rank = resolve_settings(RankSettings, {**seed, **stored.get("rank", {})}, given["rank"], "rank")
    own = resolve_settings(RunSettings, stored.get("run", {}), given["run"], "run")
    base = {**shared, "valid_portion": 0.1, **stored.get("train", {})}
    train = resolve_settings(TrainSettings, base, given["train"], "train")
    _check_given(given)
    _check(own, propose, train)
    parts(search.task, train)  # what does not fit the final trainings is told before the search
    if own.export != "none":
        checked_formats(own.export)
    front = _front(search, own, stored.get("front", {}), given["front"])
    model = resolve_predictor(
        predictor, stored.get("predictor", {}), given["predictor"], search.space, search.task.shapes
    )
    resolved = {
        **search.config,
        "propose": plain(propose),
        "collect": plain(collect),
        "predictor": plain_plugin(PREDICTORS, model),
        "rank": plain(rank),
        "final": plain_plugin(SPACES, search.final),
        "train": plain(train),
        **({"front": plain(front)} if front is not None else {}),
        "run": plain(own),
    }
    return RunPlan(search, collect, train, model, front, own, resolved)


def _front(
    search: SearchPlan, own: RunSettings, stored: Mapping[str, Any], given: Mapping[str, str]
) -> FrontSettings | None:
    """How a front is searched, within the limits of the search unless others are given; None where none is."""
    if own.against == "none":
        if given:
            raise SettingError(
                f"front.{next(iter(given))} must be of a front that is searched, but run.against is none; name costs "
                "by --against."
            )
        return None
    require_pymoo()
    taken = ("max_params", "max_flops", "max_latency", "max_memory", "latency", "seed")
    same = {name: value for name, value in plain(search.settings).items() if name in taken}
    front = resolve_settings(FrontSettings, {**same, **stored, "against": own.against}, given, "front")
    if "latency" in chosen_costs(front.against) or front.max_latency is not None:
        Bench(front.latency, search.task.shapes)  # a runtime that is missing is told before the search
    return front


def _check_given(given: Mapping[str, Mapping[str, str]]) -> None:
    """Raises SettingError for settings of stages that the pipeline sets itself."""
    for group, name, what in (
        ("collect", "count", "labels are made, --labels"),
        ("rank", "top", "candidates are trained, --train; all are ranked"),
        ("rank", "next", "labels are made, --labels; none come after the ranking"),
    ):
        if name in given[group]:
            raise SettingError(
                f"{group}.{name} must be left out, since a pipeline goes by how many {what}, but is given as "
                f"{given[group][name]}."
            )


def _check(own: RunSettings, propose: ProposeSettings, train: TrainSettings) -> None:
    """Raises SettingError for numbers that do not fit each other."""
    if own.labels > propose.count:
        raise SettingError(
            f"run.labels must be at most the number of candidates, {propose.count}, but is {own.labels}; ask for fewer "
            "by --labels or more by --candidates."
        )
    if own.train > propose.count:
        raise SettingError(
            f"run.train must be at most the number of candidates, {propose.count}, but is {own.train}; ask for fewer "
            "by --train or more by --candidates."
        )
    if not train.valid_portion:
        raise SettingError(
            "train.valid_portion must be above 0, since the winner is chosen by what is held out, but is 0; set 0.1."
        )
    if train.inherit:
        raise SettingError(
            "train.inherit must be false, since all candidates are trained alike from scratch, but is true; leave it "
            "out."
        )
