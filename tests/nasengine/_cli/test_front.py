from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from nasengine._cli.front import EPILOG
from nasengine.config import read_config
from tests.nasengine._cli.conftest import Run
from tests.nasengine.rankings import SHAPES, SPEC, table
from tests.nasengine.runs import record

SMALL = ("--population", "8", "--generations", "3")


@pytest.fixture
def ranking(tmp_path: Path) -> Path:
    from nasengine.ranking import rank

    return rank(SPEC, table(40), task=SHAPES, settings=["rank.evaluate=false"], out=tmp_path / "ranking").path


def test_what_is_told(cli: Run, ranking: Path) -> None:
    code, out, err = cli("front", ranking, *SMALL, "--against", "parameters,multiply-adds")
    assert code == 0 and err == ""
    written = pd.read_csv(ranking / "front" / "front.csv")
    stages, best, rest = out.split("\n\n")
    assert "evolving 3 generations: " in stages
    title, *rows = best.splitlines()
    assert title.split() == ["score", "parameters", "multiply-adds", "architecture"] and len(rows) == len(written)
    assert f"{written['parameters'][0]:,}" in rows[0] and rows[0].endswith(written["architecture"][0])
    found = record(ranking / "front")["result"]
    assert f"{len(written)} of {found['evaluated']} architectures are on the front" in rest
    text = written["architecture"][written["score"].idxmax()]
    assert f"train the best: nasengine train --space {SPEC} --genotype '{text}' --data YOUR_DATA" in rest
    whole = record(ranking)
    whole["config"]["data"] = {"name": "digits", "train_size": 100}
    (ranking / "run.json").write_text(json.dumps(whole))
    said = cli("front", ranking, *SMALL, "--against", "parameters,multiply-adds", "--out", "out").out
    assert f"--genotype '{text}' --set data.train_size=100 --data digits" in said


def test_the_form_whose_costs_are_told(cli: Run, ranking: Path) -> None:
    assert "costs are of the network" not in cli("front", ranking, *SMALL, "--out", "own").out
    out = cli("front", ranking, *SMALL, "--set", "final.width=4", "--out", "wider").out
    form = record(Path("wider"))["result"]["trained_with"]
    assert form == "as it is trained, final.width=4"
    assert f"\ncosts are of the network {form} (another form by --set final.NAME=VALUE)\n" in out


def test_flags_are_settings(cli: Run, ranking: Path) -> None:
    flags = ("--max-params", "300", "--max-flops", "400", "--max-memory", "1MB", "--seed", "3")
    code, _, _ = cli("front", ranking, *SMALL, *flags, "--out", "out")
    assert code == 0
    assert read_config(Path("out"), "front")["front"] == {
        "against": "parameters",
        "population": 8,
        "generations": 3,
        "max_params": 300,
        "max_flops": 400,
        "max_latency": None,
        "max_memory": 1000000,
        "latency": {"runtime": "torch", "device": "auto", "threads": 1, "batch_size": 1},
        "seed": 3,
    }
    assert cli("front", "--config", "out", "--out", "again").code == 0
    assert Path("again/front.csv").read_bytes() == Path("out/front.csv").read_bytes()


def test_stopped_by_ctrl_c(cli: Run, ranking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nasengine.nsga2.evolve_front", stop)
    code, _, err = cli("front", ranking, *SMALL, "--out", "out")
    assert code == 130 and err == "nasengine: Stopped, and nothing is kept of it: give the same command again.\n"
    assert not list(Path("out").glob("front.*"))


def test_wrong_inputs(refuse: Callable[..., str], ranking: Path) -> None:
    assert refuse("front").startswith("A front must have a predictor, but none is given")
    assert refuse("front", ranking, "--against", "speed").startswith("Unknown cost 'speed'")
    assert refuse("show", ranking / ".." / "none").startswith("A run must be a directory")


def test_the_example_is_a_command(cli: Run) -> None:
    arguments = shlex.split(EPILOG.removeprefix("Example: nasengine "))
    code, _, err = cli(*arguments)
    assert code == 2 and "There must be a saved predictor at results/ranked" in err
