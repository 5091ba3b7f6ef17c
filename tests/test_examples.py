"""The examples and the space in README.md: short, correct, and run by the commands that they name."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch

from nasengine._cli.main import main
from nasengine.registry import SPACES
from nasengine.task import Shapes, load_task
from nasengine.testing import check_space
from tests.nasengine.runs import record

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {"images.py": "SmallCNN", "signals.py": "SignalNet", "tables.py": "MLP"}
DATA = {"images.py": "digits", "signals.py": "examples/signals.py:signals", "tables.py": "sklearn:wine"}
QUICK = ("--epochs", "1", "--device", "cpu", "--set", "data.train_size=140")
FEW = ("--set", "algo.evolution.population=2", "--set", "algo.evolution.generations=0")


def commands(example: str) -> list[list[str]]:
    """The command lines in the docstring of an example, without `nasengine`."""
    text = ast.get_docstring(ast.parse((ROOT / "examples" / example).read_text(encoding="utf-8"))) or ""
    return [shlex.split(line)[1:] for line in text.replace("\\\n", " ").splitlines() if "nasengine " in line]


def test_every_example_is_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(CLASSES)


@pytest.mark.parametrize("example", CLASSES)
def test_a_space_is_under_twenty_lines(example: str) -> None:
    tree = ast.parse((ROOT / "examples" / example).read_text(encoding="utf-8"))
    space = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASSES[example])
    assert (space.end_lineno or 0) - space.lineno < 20


@pytest.mark.parametrize("example", CLASSES)
def test_the_laws_hold(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    space = SPACES[f"examples/{example}:{CLASSES[example]}"](widths=(2, 4))
    shapes = load_task(DATA[example]).shapes
    check_space(space, shapes)


@pytest.mark.parametrize("example", CLASSES)
def test_the_commands_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    search, train = commands(example)
    assert search[:3] == ["search", "--space", f"examples/{example}:{CLASSES[example]}"]
    assert search[search.index("--data") + 1] == DATA[example]
    assert train[1] == f"results/{load_task(DATA[example]).name}/{CLASSES[example]}/rarts/seed-0"
    assert main([*search, *QUICK, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert main(["train", str(tmp_path / "run"), *train[2:], *QUICK]) == 0, capsys.readouterr().err
    assert record(tmp_path / "run" / "final")["result"]["test_accuracy"] > 0


@pytest.mark.parametrize("algorithm", ["darts", "deps", "slimming"])
@pytest.mark.parametrize("example", CLASSES)
def test_other_algorithms_run(
    example: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    search = commands(example)[0]
    place = search.index("--set")
    assert search[place + 1].startswith("algo.alphas")
    if algorithm != "darts":
        del search[place : place + 2]
    few = FEW if algorithm == "deps" else ()
    code = main([*search, "--algo", algorithm, *QUICK, *few, "--out", str(tmp_path / "run")])
    assert code == 0, capsys.readouterr().err
    choices = SPACES[f"examples/{example}:{CLASSES[example]}"]().choices(load_task(DATA[example]).shapes)
    found = record(tmp_path / "run")["result"]["architecture"]
    assert [word.partition("=")[0] for word in found.split()] == list(choices)


def test_a_regression_runs_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = ["search", "--space", "examples/tables.py:MLP", "--data", "sklearn:diabetes", "--batch-size", "16"]
    assert main([*run, *QUICK, "--out", str(tmp_path)]) == 0
    assert record(tmp_path)["result"]["derived_negative_mse"] < 0


def test_the_signals_are_the_same_every_time_and_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    one, other = (load_task("examples/signals.py:signals") for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert one.shapes == Shapes((1, 64), 3)
    assert torch.bincount(one.dataset.test_targets).tolist() == [100, 100, 100]


def test_the_space_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A space of your own")[2]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    lines = re.findall(r"^    nasengine (.*)$", text, re.MULTILINE)
    assert code is not None and "class MySpace" in code[1] and len(lines) == 2
    assert len(code[1].partition("class MySpace")[2].splitlines()) < 20
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code[1], encoding="utf-8")
    check_space(SPACES["mine.py:MySpace"](widths=(2, 4)), Shapes((1, 8, 8), 10))
    assert main([*shlex.split(lines[0]), *QUICK]) == 0
    assert main([*shlex.split(lines[1]), *QUICK]) == 0
    assert record(Path("results/digits/MySpace/rarts/seed-0"))["config"]["space"]["widths"] == [8, 12, 16, 24]
