"""What a comparison is made of: algorithms with their settings, one space, task and budget, resolved beforehand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nasengine.algorithm import Algorithm
from nasengine.config import (
    AnySpace,
    AnyTask,
    CompareSettings,
    SearchSettings,
    TrainSettings,
    plain_plugin,
    resolve_algorithm,
    resolve_settings,
    split_assignments,
)
from nasengine.errors import SettingError
from nasengine.registry import ALGORITHMS, SPACES
from nasengine.search_plan import SHARED, plan_search
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Task

AnyAlgorithm = str | type[Algorithm[Any]] | Algorithm[Any]
"""A name that settings may follow, such as "darts:order=second:alphas.lr=0.01"; a class, or an instance."""

DEFAULT: Final = ("darts", "rarts", "random")
GROUPS: Final = ("space", "data", "search", "final", "train", "compare")
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BUDGET: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd]?)")
_UNSAFE: Final = re.compile(r"[^\w.=+-]+", re.ASCII)
_MOST_LETTERS: Final = 100


@dataclass(frozen=True)
class Contender:
    """An algorithm with its settings.

    Attributes:
        label: how it was named; tells it apart from the others.
        folder: the label as the name of a directory.
    """

    label: str
    folder: str
    algorithm: Algorithm[Any]


@dataclass(frozen=True)
class ComparePlan:
    """A comparison that is resolved but has not begun.

    Attributes:
        search: settings of all searches but for their epochs and seeds; its seed is the first one.
        final: the space with the settings of the final training.
        config: all of it as plain values.
    """

    space: Space
    contenders: tuple[Contender, ...]
    task: Task
    search: SearchSettings
    final: Space
    train: TrainSettings
    settings: CompareSettings
    config: dict[str, Any]

    @property
    def default_out(self) -> Path:
        """results/<task>/<space>/compare-seed-<n>"""
        return Path("results") / self.task.name / self.space.name / f"compare-seed-{self.search.seed}"

    @property
    def seeds(self) -> range:
        """Of the searches of each algorithm, and of the trainings of what they find."""
        return range(self.search.seed, self.search.seed + self.settings.seeds)

    def search_settings(self, epochs: int, seed: int) -> SearchSettings:
        """Of one search."""
        return replace(self.search, epochs=epochs, seed=seed)


def plan_compare(
    *,
    space: AnySpace | None = None,
    algorithms: str | Sequence[AnyAlgorithm] | None = None,
    task: AnyTask | None = None,
    seeds: int | str | None = None,
    budget: float | str | None = None,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> ComparePlan:
    """Resolves names, settings (texts such as "train.epochs=30") and a stored configuration; see `compare`."""
    stored, given = dict(config or {}), split_assignments(_own(settings), GROUPS)
    contenders = _contenders(algorithms, stored.get("algos"))
    asked = {} if budget is None else {"budget": repr(parsed_seconds(budget))}
    asked |= {} if seeds is None else {"seeds": str(seeds)}
    own = resolve_settings(CompareSettings, stored.get("compare", {}), {**given["compare"], **asked}, "compare")
    first = contenders[0].algorithm
    shared = [text for text in settings if text.strip().partition(".")[0] in ("space", "data", "search", "final")]
    parts = {name: part for name, part in stored.items() if name in ("space", "data", "search", "final")}
    search = plan_search(space=space, algorithm=first, task=task, settings=shared, config=parts)
    if not search.space.searchable:
        search.space.network(search.task.shapes)  # says so
    base = {**{name: getattr(search.settings, name) for name in SHARED}, **stored.get("train", {})}
    train = resolve_settings(TrainSettings, base, given["train"], "train")
    _check_training(train)
    resolved = {
        "space": search.config["space"],
        "algos": {contender.label: plain_plugin(ALGORITHMS, contender.algorithm) for contender in contenders},
        "data": search.config["data"],
        "search": {name: value for name, value in search.config["search"].items() if name != "epochs"},
        "final": plain_plugin(SPACES, search.final),
        "train": plain(train),
        "compare": plain(own),
    }
    return ComparePlan(search.space, contenders, search.task, search.settings, search.final, train, own, resolved)


def parsed_seconds(text: float | str) -> float:
    """Seconds of a text such as "90s", "20m", "1.5h" or "90". Raises SettingError."""
    found = _BUDGET.fullmatch(str(text).strip().lower())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise SettingError(
            f"A budget must be a time above 0 such as 90s, 20m or 1.5h, but got {str(text)!r}; say how long one search "
            "may take."
        )
    return seconds


def _own(settings: Sequence[str]) -> list[str]:
    """The settings, none of which is for an algorithm or follows from the budget."""
    for text in settings:
        name = text.partition("=")[0].strip()
        if name.startswith("algo."):
            raise SettingError(
                "Settings of algorithms in a comparison must stand behind their names, such as rarts:alphas.lr=0.01, "
                f"but got {text!r}; put it there."
            )
        if name == "search.epochs":
            raise SettingError(
                "The epochs of searches that are compared must follow from the budget, but search.epochs is given; "
                "leave it out, and set --budget."
            )
    return list(settings)


def _contenders(
    algorithms: str | Sequence[AnyAlgorithm] | None, stored: Mapping[str, Any] | None
) -> tuple[Contender, ...]:
    """The algorithms that are named, else the stored ones; two or more that differ. Raises NasengineError."""
    if algorithms is None and stored is not None:
        pairs = [(str(label), resolve_algorithm(None, part, {})) for label, part in stored.items()]
    else:
        named = DEFAULT if algorithms is None else algorithms
        texts = [text for text in named.split(",") if text.strip()] if isinstance(named, str) else named
        pairs = [_named(one) for one in texts]
    if len(pairs) < 2:
        raise SettingError(
            f"A comparison must be of two algorithms or more, but got {pairs[0][0] if pairs else 'none'}; name them "
            "as in --algo darts,rarts,random."
        )
    found: dict[str, Contender] = {}
    for label, algorithm in pairs:
        again = next((known for known in found.values() if known.algorithm == algorithm), found.get(label))
        if again is not None:
            both = f"{label!r} came twice" if label == again.label else f"{again.label!r} and {label!r} are the same"
            raise SettingError(
                f"The algorithms of a comparison must differ, but {both}; leave one out, or add settings as in "
                "darts:order=second."
            )
        found[label] = Contender(label, _folder(label, [known.folder for known in found.values()]), algorithm)
    return tuple(found.values())


def _named(algorithm: AnyAlgorithm) -> tuple[str, Algorithm[Any]]:
    """The label of an algorithm, and the algorithm."""
    if not isinstance(algorithm, str):
        made = resolve_algorithm(algorithm, {}, {})
        changed = sorted(_changed(plain(made), plain(type(made)()), ""))
        return ":".join([ALGORITHMS.spec(made), *changed]), made
    name, *changes = _split(algorithm.strip())
    pairs = [change.partition("=") for change in changes]
    return algorithm.strip(), resolve_algorithm(name, {}, {key.strip(): value.strip() for key, _, value in pairs})


def _split(text: str) -> list[str]:
    """A name, which may have a ":" itself as file.py:Class has, and the settings behind it."""
    parts = text.split(":")
    known = 1 if parts[0] in ALGORITHMS.names() else len(parts)
    count = next((place for place, part in enumerate(parts) if "=" in part), known)
    wrong = next((part for part in parts[count:] if "=" not in part), None)
    if wrong is not None:
        raise SettingError(
            f"What stands behind an algorithm must be settings such as darts:order=second, but got {wrong!r} in "
            f"{text!r}; write name=value."
        )
    return [":".join(parts[:count]), *parts[count:]]


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> list[str]:
    """The settings that are not at their defaults, as texts."""
    found: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _changed(value, defaults[name], f"{where}{name}.")
        elif value != defaults[name]:
            found.append(f"{where}{name}={value}")
    return found


def _folder(label: str, taken: Sequence[str]) -> str:
    """A label as the name of a directory that no other one has, whatever a file system makes of letters."""
    name = _UNSAFE.sub("-", label).strip("-.")[:_MOST_LETTERS] or "algorithm"
    known, number, found = {folder.lower() for folder in taken}, 2, name
    while found.lower() in known:
        found, number = f"{name}-{number}", number + 1
    return found


def _check_training(train: TrainSettings) -> None:
    """Raises SettingError unless all networks are trained alike, and tested."""
    if train.inherit:
        raise SettingError(
            "train.inherit must be false, since all networks are trained alike from scratch, but is true; leave it out."
        )
    if train.valid_portion:
        raise SettingError(
            "train.valid_portion must be 0, since nothing is chosen and every network is tested once, but is "
            f"{train.valid_portion}; leave it out."
        )
