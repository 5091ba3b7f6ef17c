"""Pareto fronts: the true one is found, limits are kept, and what is written can be read back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import nasengine
from nasengine.architecture import Architecture
from nasengine.budget import CostModel, Limits
from nasengine.config import read_config
from nasengine.errors import LimitError, MissingExtraError, RunError, SettingError, UnknownNameError
from nasengine.pareto import front, non_dominated
from nasengine.predictor import PREDICTORS, Predictor
from nasengine.pricing import Prices
from nasengine.ranking import PREDICTOR
from nasengine.seeding import generator
from nasengine.task import Shapes
from search_spaces.nasbench101 import NASBench101
from search_spaces.nasbench201 import NASBench201
from tests.nasengine.rankings import SHAPES, Five, ranked, table
from tests.nasengine.runs import contents, record

SPACE, SMALL = Five(), ("front.population=20", "front.generations=6")
NB201 = Path(__file__).resolve().parents[3] / "shared" / "data" / "nasbench201" / "nasbench201.parquet"


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranked(table(40), tmp_path_factory.mktemp("ranks") / "ranking").path


def dominates(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool((one <= other).all() and (one < other).any())


def plain_front(values: NDArray[np.float64]) -> list[bool]:
    """By the definition: O(n^2)."""
    return [not any(dominates(one, other) for one in values) for other in values]


@pytest.mark.parametrize("columns", [2, 3])
def test_non_dominated_rows(columns: int) -> None:
    rng = np.random.default_rng(columns)
    for _ in range(20):
        values = rng.integers(6, size=(60, columns)).astype(float)  # with equal rows and equal columns
        assert non_dominated(values).tolist() == plain_front(values)
    assert non_dominated(np.zeros((0, 2))).tolist() == []
    assert non_dominated(np.zeros((3, 2))).all()


@pytest.mark.parametrize("against", ["parameters", "multiply_adds,parameters"])
def test_the_true_front_of_a_space(ranking: Path, tmp_path: Path, against: str) -> None:
    settings = ("front.population=40", "front.generations=12", f"front.against={against}")
    found = front(ranking, settings=settings, out=tmp_path / "out")
    predictor, every = nasengine.load_predictor(ranking / PREDICTOR), SPACE.everything(SHAPES)
    prices = Prices(SPACE, SHAPES, against.split(","))
    values = np.stack([-predictor.predict(every), *prices(every).values()], axis=1)
    true = {tuple(row) for row, kept in zip(values.round(9), plain_front(values), strict=True) if kept}
    names = ["score", *against.split(",")]
    rows = found.front[names].to_numpy(float) * [-1, *[1] * (len(names) - 1)]
    assert {tuple(row) for row in rows.round(9)} == true
    assert found.evaluated <= len(every)


def test_what_is_written(ranking: Path, tmp_path: Path) -> None:
    found = front(ranking, settings=SMALL, out=tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"front.csv", "front.svg", "front.png", "run.json"}
    written = pd.read_csv(tmp_path / "out" / "front.csv")
    pd.testing.assert_frame_equal(written, found.front)
    assert list(written) == ["architecture", "score", "uncertainty", "parameters"]
    assert written["parameters"].is_monotonic_increasing and written["score"].is_monotonic_increasing
    architectures = SPACE.from_table(written)
    predictor = nasengine.load_predictor(ranking / PREDICTOR)
    scores, deviations = predictor.predict(architectures, return_std=True)
    np.testing.assert_allclose(written["score"], scores)
    np.testing.assert_allclose(written["uncertainty"], deviations)
    model = CostModel(SPACE, SHAPES)
    assert written["parameters"].tolist() == [model.of(a).parameters for a in architectures]
    assert found.texts == tuple(map(SPACE.write, architectures))
    result = record(tmp_path / "out")["result"]
    assert (result["points"], result["evaluated"]) == (len(written), found.evaluated)
    assert result["best"] == written["score"].max()
    assert record(tmp_path / "out")["status"] == "finished" and b"<svg" in contents(tmp_path / "out")["front.svg"]


def test_the_seed_alone_decides(ranking: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    one = front(ranking, settings=("front.population=8", "front.generations=2"), out=tmp_path / "one")
    torch.manual_seed(2)
    np.random.seed(2)
    again = front(config=read_config(one.path, "front"), out=tmp_path / "again")
    other = front(config=read_config(one.path, "front"), settings=["front.seed=1"], out=tmp_path / "other")
    assert one.front.equals(again.front) and contents(one.path)["front.svg"] == contents(again.path)["front.svg"]
    assert not one.front.equals(other.front)


def test_limits_are_kept(ranking: Path, tmp_path: Path) -> None:
    free = front(ranking, settings=SMALL, out=tmp_path / "free").front["parameters"]
    limit = int(free.median())
    bound = front(ranking, settings=[*SMALL, f"front.max_params={limit}"], out=tmp_path / "bound")
    assert free.max() > limit >= bound.front["parameters"].max()
    with pytest.raises(LimitError, match="below the 67 parameters of its smallest network"):
        front(ranking, settings=[*SMALL, "front.max_params=10"], out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_costs_that_are_measured_are_given(ranking: Path, tmp_path: Path) -> None:
    def clock(architectures: Sequence[Architecture]) -> dict[str, NDArray[np.float64]]:
        return {"latency": np.array([1e-3 * (1 + list(a.values()).count("relu")) for a in architectures])}

    settings = (*SMALL, "front.against=latency,parameters")
    found = front(ranking, costs=clock, settings=settings, out=tmp_path / "out").front
    assert list(found)[-2:] == ["latency", "parameters"] and found["latency"].is_monotonic_increasing
    assert found["latency"].iloc[0] == pytest.approx(1e-3)


def test_a_directory_or_a_fitted_predictor(ranking: Path, tmp_path: Path) -> None:
    settings = ("front.population=8", "front.generations=2")
    assert front(ranking.parent, settings=settings).path == ranking / "front"  # as below a pipeline
    predictor = nasengine.load_predictor(ranking / PREDICTOR)
    assert front(predictor, settings=settings, out=tmp_path / "out").record["config"]["files"] == {"predictor": None}


def test_a_front_begins_anew_where_one_was_stopped(ranking: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "evolving" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        front(ranking, settings=SMALL, out=tmp_path / "out", progress=stop)
    assert contents(tmp_path / "out") == {}
    front(ranking, settings=SMALL, out=tmp_path / "out")
    with pytest.raises(RunError, match="holds a run that is finished; give another --out"):
        front(ranking, settings=SMALL, out=tmp_path / "out")


def test_wrong_inputs(ranking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="must have a predictor, but none is given; name the directory of a ranking"):
        front()
    with pytest.raises(RunError, match=r"directory of a finished ranking, with a predictor.safetensors, but .* has no"):
        front(tmp_path)
    with pytest.raises(RunError, match="predictor of a front must be fitted, but this one is not; call fit"):
        front(PREDICTORS["ridge"](space=SPACE, shapes=SHAPES))
    with pytest.raises(UnknownNameError, match="Unknown cost 'parameter': did you mean 'parameters'"):
        front(ranking, settings=["front.against=parameter"])
    with pytest.raises(SettingError, match="against one cost or more, but none is named; give parameters, multiply"):
        front(ranking, settings=["front.against=,"])
    with pytest.raises(SettingError, match=r"front.population must be at least 4, but got 1"):
        front(ranking, settings=["front.population=1"])
    monkeypatch.setitem(sys.modules, "pymoo.core.problem", None)
    with pytest.raises(MissingExtraError, match=r"not installed; run pip install 'nasengine\[front\]'\."):
        front(ranking, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_costs_are_counted_alike_in_every_way() -> None:
    rng, shapes = generator(3), Shapes((1, 8, 8), 10)
    cells = NASBench101(channels=4, cells=1)
    for space in (cells, Five()):
        own = SHAPES if space is not cells else shapes
        drawn = [space.sample(space.choices(own), rng) for _ in range(3)]
        prices = Prices(space, own, ("parameters", "multiply_adds"))
        fast = prices.counted(drawn)
        assert (prices.model is None) == (space is cells)
        assert fast == [prices._built(architecture) for architecture in drawn]
    with pytest.raises(LimitError, match=r"but the nearest one that was found has .* parameters; raise"):
        Prices(cells, shapes, ("parameters",), Limits(5, None)).start(cells.choices(shapes))


@pytest.mark.skipif(not NB201.exists(), reason="the table of NAS-Bench-201 is not there")
def test_the_front_of_nasbench201(tmp_path: Path) -> None:
    from pymoo.indicators.hv import HV

    space, shapes = NASBench201(), Shapes((3, 32, 32), 10)
    labels = pd.read_parquet(NB201).sample(150, random_state=0)
    kind: type[Predictor] = PREDICTORS["ridge"]
    known = [space.read(text) for text in labels["architecture"]]
    predictor = kind(space=space, shapes=shapes).fit(known, labels["cifar10_validation_accuracy"])
    settings = ("front.generations=12",)
    found = front(predictor, settings=settings, out=tmp_path / "out")
    every = space.everything(shapes)
    prices = Prices(space, shapes, ("parameters",))
    values = np.stack([-predictor.predict(every), prices(every)["parameters"]], axis=1)
    assert found.evaluated <= 1200 < len(every) == len(values)
    low, high = values.min(0), values.max(0)
    volume = HV(ref_point=np.full(2, 1.1))
    reached = volume((found.front[["score", "parameters"]].to_numpy() * [-1, 1] - low) / (high - low))
    true = np.unique(values[non_dominated(values)], axis=0)
    assert reached >= 0.995 * volume((true - low) / (high - low))
