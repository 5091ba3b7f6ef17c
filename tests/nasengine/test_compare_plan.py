"""How a comparison is named: algorithms with settings, budgets as texts, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.random_search import RandomSearch
from nasengine.compare_plan import AnyAlgorithm, ComparePlan, parsed_seconds, plan_compare
from nasengine.errors import NasengineError, SettingError, UnknownNameError
from tests.nasengine.comparisons import COMPARE


def planned(algorithms: str | Sequence[AnyAlgorithm], small: str, *settings: str, **more: Any) -> ComparePlan:
    return plan_compare(algorithms=algorithms, task=small, settings=(*COMPARE, *settings), **more)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20m", 1200), ("90s", 90), ("90", 90), (90, 90), (1.5, 1.5), ("1.5h", 5400), (" 2 H ", 7200), ("0.1d", 8640)],
)
def test_a_budget_is_a_time(text: float | str, seconds: float) -> None:
    assert parsed_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0m", "abc", "", "-5m", "20 minutes", "1h30m", "inf", "nan", 0, -1.0])
def test_what_is_no_time(text: float | str) -> None:
    with pytest.raises(SettingError, match=r"must be a time above 0 such as 90s, 20m or 1\.5h, but got '.*'; say how"):
        parsed_seconds(text)


def test_settings_stand_behind_names(small: str) -> None:
    plan = planned("darts:order=second:alphas.lr=0.1, rarts,random", small, seeds=2, budget="3m")
    labels = ["darts:order=second:alphas.lr=0.1", "rarts", "random"]
    assert [contender.label for contender in plan.contenders] == labels
    assert [contender.folder for contender in plan.contenders] == [labels[0].replace(":", "-"), *labels[1:]]
    darts = plan.contenders[0].algorithm
    assert isinstance(darts, DARTS) and (darts.order, darts.alphas.lr) == ("second", 0.1)
    assert plan.seeds == range(2) and plan.settings.budget == 180 and "epochs" not in plan.config["search"]
    again = plan_compare(task=small, config=plan.config)
    assert again.contenders == plan.contenders and again.config == plan.config


def test_classes_and_instances_are_labelled_by_what_differs_from_the_defaults(small: str) -> None:
    plan = planned([DARTS, DARTS(order="second"), RandomSearch(samples=7)], small)
    assert [contender.label for contender in plan.contenders] == ["darts", "darts:order=second", "random:samples=7"]


def test_the_plugin_of_a_file_keeps_its_colon(small: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from nasengine.algorithms.random_search import RandomSearch\n")
    plan = planned(f"rarts,{file}:RandomSearch:samples=3", small)
    assert plan.contenders[1].algorithm.samples == 3  # type: ignore[attr-defined]
    assert "/" not in plan.contenders[1].folder and ":" not in plan.contenders[1].folder


def test_folders_differ_though_labels_are_alike_when_they_are_safe(small: str) -> None:
    plan = planned("darts:alphas.lr=0.1,darts:alphas.lr= 0.2,darts:order=second,Darts:order=exact".lower(), small)
    folders = [contender.folder for contender in plan.contenders]
    assert len({folder.lower() for folder in folders}) == 4 and not any("/" in folder for folder in folders)


def test_by_default_three_algorithms_and_three_seeds_from_the_first_one(small: str) -> None:
    plan = plan_compare(task=small, settings=(*COMPARE, "search.seed=5"))
    assert [contender.label for contender in plan.contenders] == ["darts", "rarts", "random"]
    assert list(plan.seeds) == [5, 6, 7] and plan.train.seed == 5 and plan.settings.budget == 1200
    assert plan.default_out == Path("results") / plan.task.name / "darts" / "compare-seed-5"
    assert plan.final.channels == 2 and plan.search_settings(4, 6).epochs == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("algorithms", "kind", "told"),
    [
        ("darts,dats", UnknownNameError, r"Unknown algorithm 'dats': did you mean 'darts'"),
        ("darts,rarts,darts", SettingError, r"must differ, but 'darts' came twice; leave one out"),
        ("darts,darts:order=first", SettingError, r"must differ, but 'darts' and 'darts:order=first' are the same"),
        ("darts", SettingError, r"must be of two algorithms or more, but got darts; name them"),
        ("darts,", SettingError, r"must be of two algorithms or more, but got darts"),
        ([], SettingError, r"must be of two algorithms or more, but got none"),
        (
            "darts:second,rarts",
            SettingError,
            r"must be settings such as darts:order=second, but got 'second' in 'darts",
        ),
        (
            "darts:order=second:exact,rarts",
            SettingError,
            r"must be settings such as darts:order=second, but got 'exact'",
        ),
        ("darts:ordr=second,rarts", UnknownNameError, r"Unknown setting 'algo\.ordr': did you mean 'algo\.order'"),
        ("darts:order=third,rarts", SettingError, r"algo\.order must be first or second or exact, but got 'third'"),
    ],
)
def test_algorithms_that_cannot_be_compared(algorithms: str, kind: type[NasengineError], told: str, small: str) -> None:
    with pytest.raises(kind, match=told):
        planned(algorithms, small)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("algo.order=second", r"must stand behind their names, such as rarts:alphas\.lr=0\.01, but got 'algo\.order"),
        ("search.epochs=3", r"must follow from the budget, but search\.epochs is given; leave it out"),
        ("compare.seeds=0", r"compare\.seeds must be at least 1, but got 0"),
        ("compare.budget=0", r"compare\.budget must be more than 0, but got 0"),
        ("train.inherit=true", r"train\.inherit must be false, since all networks are trained alike"),
        ("train.valid_portion=0.1", r"train\.valid_portion must be 0, since nothing is chosen .* but is 0\.1"),
    ],
)
def test_settings_that_would_not_be_honest(setting: str, told: str, small: str) -> None:
    with pytest.raises(SettingError, match=told):
        planned("darts,rarts", small, setting)


@pytest.mark.parametrize("seeds", [0, "0", "many"])
def test_seeds_are_a_number(seeds: int | str, small: str) -> None:
    with pytest.raises(SettingError, match=r"compare\.seeds must be "):
        planned("darts,rarts", small, seeds=seeds)


def test_a_space_without_a_supernet(small: str) -> None:
    with pytest.raises(SettingError, match=r"must have a supernet, but 'nasbench101' has none"):
        plan_compare(space="nasbench101", task=small)
