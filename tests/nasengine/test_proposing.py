"""The candidates of a finished search, on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import nasengine
from nasengine._cli.main import main
from nasengine.collecting import plan_collection
from nasengine.errors import NasengineError, RunError, SettingError
from nasengine.listing import show
from search_spaces.darts import DARTS
from tests.nasengine.runs import SEARCH, flags


def test_a_table_that_the_other_verbs_read(ended: Path, small: str) -> None:
    found = nasengine.propose(ended, count=6)
    table = pd.read_csv(ended / "candidates" / "candidates.csv")
    assert list(table) == ["source", "architecture", "parameters", "multiply_adds"]
    assert table["source"].tolist()[0] == "derived" and table["architecture"][0] == show(ended).text
    assert table["architecture"].nunique() == 6 and (table["multiply_adds"] > 0).all()
    assert found.record["result"]["candidates"] == 6 and found.record["status"] == "finished"
    pd.testing.assert_frame_equal(found.candidates, table)
    settings = ["collect.epochs=1", "collect.batch_size=8", *(text for text in SEARCH if text.startswith("space."))]
    labels = nasengine.collect(
        "darts", small, architectures=found.path / "candidates.csv", count=2, settings=settings, out=ended / "labels"
    )
    assert pd.read_csv(labels.labels)["architecture"].tolist() == table["architecture"].tolist()[:2]
    again = nasengine.collect(  # space and data are those of the search
        architectures=found.path / "candidates.csv", count=2, settings=settings[:2], out=ended / "again"
    )
    assert again.record["config"] == labels.record["config"] and again.record["facts"] == labels.record["facts"]
    other = plan_collection(task="digits", architectures=found.path / "candidates.csv").config
    assert other["data"]["name"] == "digits" and other["space"] == labels.record["config"]["space"]
    space = DARTS(channels=2, layers=3, nodes=1)
    assert len(set(space.from_table(table))) == 6


def test_the_same_ones_again(ended: Path, tmp_path: Path) -> None:
    tables = [nasengine.propose(ended, count=5, out=tmp_path / name).candidates for name in ("one", "other")]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("algorithm", ["darts", "deps", "slimming"])
def test_every_kind_of_algorithm(algorithm: str, small: str, tmp_path: Path) -> None:
    settings = ["search.epochs=1", "search.batch_size=8", "search.device=cpu"]
    shrinks = algorithm == "deps"
    settings += ["algo.evolution.population=4", "algo.evolution.generations=1"] if shrinks else []
    found = nasengine.search("tests/nasengine/dense.py:Dense", algorithm, small, settings=settings, out=tmp_path / "s")
    table = nasengine.propose(tmp_path / "s", count=5).candidates
    assert len(table) == 5 and table["architecture"].nunique() == 5
    assert table["architecture"][0] == found.text and table["source"][0] == "derived"
    assert ("evolved" in set(table["source"])) == shrinks


def test_what_is_refused(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[type[NasengineError], str, dict[str, object]]] = [
        (RunError, "Candidates must come from a finished search, but .*final holds one of 'nasengine train'", {}),
        (SettingError, "propose.count must be at least 1, but got 0", {"count": 0}),
        (NasengineError, "Unknown setting 'propose.size'", {"settings": ["propose.size=3"]}),
    ]
    for kind, message, more in cases:
        with pytest.raises(kind, match=message):
            nasengine.propose(ended / "final", out=tmp_path / "out", **more)  # type: ignore[arg-type]
    record = json.loads((ended / "run.json").read_text())
    (ended / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    with pytest.raises(RunError, match="holds one that is interrupted; go on with the search, or name another"):
        nasengine.propose(ended, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (ended / "run.json").write_text(json.dumps(record))
    assert main(["propose", str(ended), "--count", "3"]) == 0
    assert "3 candidates: " in capsys.readouterr().out
    assert main(["propose", str(ended), *flags(["propose.count=3"])]) == 2
    assert "must be new or empty" in capsys.readouterr().err
