from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nasengine
from nasengine._cli.list import EPILOG
from tests.nasengine._cli.conftest import Run


def test_list_names_everything(cli: Run) -> None:
    code, out, err = cli("list")
    assert code == 0 and err == ""
    assert [line for line in out.splitlines() if line.isupper()] == [
        "SPACE",
        "ALGORITHM",
        "PREDICTOR",
        "DATA",
        "SETTINGS",
    ]
    for entry in nasengine.list():
        assert f"\n  {entry.name:<12} {entry.summary}\n" in out
        for setting in entry.settings:
            assert re.search(rf"\n      {re.escape(setting.name)}( = \S+)? +{re.escape(setting.help)}\n", out)


def test_defaults_are_written_as_they_are_set(cli: Run) -> None:
    lines = [" ".join(line.split()) for line in cli("list").out.splitlines()]
    assert any(line.startswith("algo.weights.lr = 0.025 ") for line in lines)
    assert any(line.startswith("space.auxiliary = false ") for line in lines)
    assert any(line.startswith("data.crop pixels of zero padding") for line in lines)


def test_the_examples_are_commands(cli: Run) -> None:
    first, second = re.findall(r"nasengine ([^()]+)", EPILOG)
    assert first.split() == ["list"] and second.split()[0] == "search"
    assert cli(*second.split(), "--epochs", "0").err == "nasengine: search.epochs must be at least 1, but got 0.\n"


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "nasengine", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()
