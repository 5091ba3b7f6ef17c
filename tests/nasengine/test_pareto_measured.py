"""Fronts against costs of the network that is to be trained: which form counts, seconds by the table or measured."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nasengine import cost
from nasengine.config import read_config
from nasengine.errors import LimitError, SettingError
from nasengine.pareto import front, non_dominated
from tests.nasengine.machines import FakeMachine, sum_of_pieces
from tests.nasengine.rankings import SHAPES, SPEC, Five, ranked, table
from tests.nasengine.runs import record

SMALL = ("front.population=16", "front.generations=3")
PARTS = ("algo", "data", "search", "propose", "collect", "predictor", "rank", "train", "run")


@pytest.fixture(scope="module")
def _ranking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranked(table(40), tmp_path_factory.mktemp("ranks") / "ranking").path


@pytest.fixture
def ranking(_ranking: Path, tmp_path: Path) -> Path:
    """Of a pipeline whose final network is narrower than that of its search."""
    plain = {**{part: {} for part in PARTS}, "space": {"name": SPEC, "width": 8}, "final": {"name": SPEC, "width": 4}}
    whole = {**record(_ranking), "verb": "run", "config": plain}
    shutil.copytree(_ranking, tmp_path / "run" / "ranking")
    (tmp_path / "run" / "run.json").write_text(json.dumps(whole))
    return tmp_path / "run" / "ranking"


def proportional(network: nn.Module) -> float:
    return 1e-5 + 2 * sum_of_pieces(network, SHAPES)


def erratic(network: nn.Module) -> float:
    """What no sum over operations tells."""
    kinds = [type(module) for module in network.modules()]
    return 1e-3 * (1 + (7 * kinds.count(nn.ReLU) + 3 * kinds.count(nn.Linear)) % 5)


Fake = Callable[[Callable[[nn.Module], float]], FakeMachine]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    def put(latency: Callable[[nn.Module], float]) -> FakeMachine:
        fake = FakeMachine(latency)
        monkeypatch.setattr("nasengine.footprint.Bench", lambda settings, shapes: fake)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return fake

    return put


@pytest.mark.parametrize(
    ("settings", "width"), [((), 4), (("final.width=6",), 6)], ids=["of the pipeline", "of a setting"]
)
def test_costs_are_of_the_network_to_train(ranking: Path, settings: tuple[str, ...], width: int) -> None:
    found = front(ranking.parent, settings=[*SMALL, *settings, "front.against=parameters,memory"])
    final = Five(width=width)
    for architecture, row in zip(Five().from_table(found.front), found.front.itertuples(), strict=True):
        assert row.parameters == cost.parameters(final.build(architecture, SHAPES))
        assert row.memory == cost.memory(partial(final.build, architecture, SHAPES), SHAPES)
    assert found.path == ranking.parent / "front"
    stored = read_config(found.path, "front")
    assert stored["final"] == {"name": SPEC, "width": width} and stored["space"]["width"] == 8
    again = front(config=stored, out=ranking / "again")
    assert again.front.equals(found.front)


def test_a_ranking_of_no_pipeline_has_the_final_form_of_its_space(ranking: Path, tmp_path: Path) -> None:
    (ranking.parent / "run.json").unlink()
    found = front(ranking, settings=SMALL, out=tmp_path / "out")
    assert read_config(found.path, "front")["final"]["width"] == 8


def test_other_choices_are_refused(ranking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ranking.parent / "run.json").unlink()
    whole = Five.network

    def longer(space: Five, shapes: Any) -> nn.Module:
        more = [space._layer("layer/5")] if space.width == 6 else []
        return nn.Sequential(*whole(space, shapes), *more)

    monkeypatch.setattr(Five, "network", longer)
    with pytest.raises(SettingError) as error:
        front(ranking, settings=["final.width=6"], out=tmp_path / "out")
    assert str(error.value) == (
        "The network to train must have the choices of the search of space 'five', but has others with final.width=6; "
        "leave out what changes them."
    )
    assert not (tmp_path / "out").exists()


def test_latencies_are_told_by_the_table(ranking: Path, tmp_path: Path, machine: Fake) -> None:
    fake, stages = machine(proportional), list[str]()
    settings = (*SMALL, "front.against=latency,multiply_adds")
    found = front(ranking, settings=settings, out=tmp_path / "out", progress=lambda stage, *_: stages.append(stage))
    final = Five(width=4)
    for architecture, row in zip(Five().from_table(found.front), found.front.itertuples(), strict=True):
        assert row.latency == pytest.approx(proportional(final.build(architecture, SHAPES)))
    result = record(found.path)["result"]
    assert result["latency_by"] == "table" and result["latency_on"]["device"] == "fake"
    assert fake.measured <= 16, "networks are measured for the calibration alone"
    assert list(dict.fromkeys(stages)) == ["reading", "pieces", "networks", "evolving", "writing"]
    assert stages.index("networks") < stages.index("evolving") and "pieces" not in stages[stages.index("evolving") :]


def test_limits_on_latency_and_memory(ranking: Path, tmp_path: Path, machine: Fake) -> None:
    machine(proportional)
    free = front(ranking, settings=[*SMALL, "front.against=latency,memory"], out=tmp_path / "free").front
    slow, large = float(free["latency"].median()), int(free["memory"].max()) - 1
    limits = (f"front.max_latency={slow}s", f"front.max_memory={large}")
    bound = front(ranking, settings=[*SMALL, *limits, "front.against=latency,memory"], out=tmp_path / "bound").front
    assert free["latency"].max() > slow >= bound["latency"].max()
    assert free["memory"].max() > large >= bound["memory"].max()
    with pytest.raises(LimitError, match=r"--max-latency 1us is below the .*ms of the fastest network found as it is"):
        front(ranking, settings=[*SMALL, "front.max_latency=1us"], out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_a_table_that_is_trusted_the_front_is_measured(ranking: Path, tmp_path: Path, machine: Fake) -> None:
    fake = machine(erratic)
    settings = (*SMALL, "front.against=latency")
    found = front(ranking, settings=settings, out=tmp_path / "out")
    final = Five(width=4)
    for architecture, row in zip(Five().from_table(found.front), found.front.itertuples(), strict=True):
        assert row.latency == pytest.approx(erratic(final.build(architecture, SHAPES)))
    assert non_dominated(found.front[["score", "latency"]].to_numpy() * [-1, 1]).all()
    result = record(found.path)["result"]
    assert result["latency_by"] == "measurement" and result["latency_table_error"] > 0.1
    assert fake.measured < found.evaluated + 32, "the front alone is measured, and what calibrates"


def test_a_limit_that_only_the_table_keeps(ranking: Path, tmp_path: Path, machine: Fake) -> None:
    fake = machine(erratic)
    front(ranking, settings=[*SMALL, "front.against=latency"], out=tmp_path / "out")
    fake.latency = lambda network: 1.0
    with pytest.raises(LimitError) as error:
        front(ranking, settings=[*SMALL, "front.max_latency=20ms"], out=tmp_path / "none")
    assert re.search(r"must leave an architecture of space 'five', but", str(error.value))
    assert "1s" in str(error.value) and not list((tmp_path / "none").glob("front.*"))
