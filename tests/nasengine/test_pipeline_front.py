"""The front of a pipeline: of the network that is trained, within the limits of the search, told in the report."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import nasengine
from nasengine import cost
from nasengine.config import resolve_space
from nasengine.errors import InterruptedRun, MissingExtraError, NasengineError, SettingError, UnknownNameError
from nasengine.evidence import fronts
from nasengine.findings import read_findings
from nasengine.run_observer import RunObserver
from tests.nasengine.runs import SEARCH, record

RUN = (
    *(*SEARCH, "propose.count=6", "run.labels=4", "run.train=1", "run.export=none"),
    *("final.channels=2", "final.layers=3", "train.epochs=1", "train.batch_size=8", "train.valid_portion=0.25"),
)
FRONT = ("run.against=multiply-adds,memory", "front.population=8", "front.generations=2", "search.max_params=30000")


class StopsAtTheFront(RunObserver):
    def began(self, stage: str, path: Path) -> None:
        if stage == "front":
            raise KeyboardInterrupt


def test_a_front_between_test_and_report(small: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InterruptedRun):
        nasengine.run("darts", "rarts", small, settings=[*RUN, *FRONT], out=out, observer=StopsAtTheFront())
    assert not (out / "front.csv").exists() and "test" in record(out)["stages"]
    nasengine.run(out=out, resume=True)
    assert list(record(out)["stages"])[-3:] == ["test", "front", "report"]
    assert (out / "front.csv").read_bytes() == (out / "front" / "front.csv").read_bytes()
    table, below = pd.read_csv(out / "front.csv"), record(out / "front")
    assert list(table)[-2:] == ["multiply_adds", "memory"]
    assert (below["verb"], below["status"]) == ("front", "finished")
    assert below["config"]["front"]["max_params"] == 30000
    final, shapes = resolve_space(None, record(out)["config"]["final"], {}), nasengine.load_task(small).shapes
    for architecture, row in zip(final.from_table(table), table.itertuples(), strict=True):
        built = partial(final.build, architecture, shapes)
        assert row.multiply_adds == cost.multiply_adds(built, shapes) and row.memory == cost.memory(built, shapes)
        assert cost.parameters(built()) <= 30000
    (shown,) = fronts(read_findings([out])[0])
    assert shown["searched"] and shown["costs"] == ["multiply_adds", "memory"] and len(shown["points"]) == len(table)
    assert "final.channels" not in shown["points"][0]["command"]
    assert "--set space.channels=2 --set space.layers=3" in shown["points"][0]["command"]


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        (("run.against=speed",), UnknownNameError, "Unknown cost 'speed'"),
        (("front.generations=3",), SettingError, "front.generations must be of a front that is searched, but run.aga"),
        (("run.against=memory", "front.population=1"), SettingError, "front.population must be at least 4, but got 1"),
    ],
)
def test_wrong_settings_are_told_first(
    settings: tuple[str, ...], kind: type[NasengineError], said: str, small: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as error:
        nasengine.run("darts", "rarts", small, settings=[*RUN, *settings], out=tmp_path / "out")
    assert str(error.value).startswith(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("pymoo.core.problem", ("run.against=memory",)),
        ("onnxruntime", ("run.against=latency", "search.latency.runtime=onnxruntime")),
    ],
)
def test_missing_packages_are_told_first(
    package: str, settings: tuple[str, ...], small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nasengine\[(front|export)\]'\.$"):
        nasengine.run("darts", "rarts", small, settings=[*RUN, *settings], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
