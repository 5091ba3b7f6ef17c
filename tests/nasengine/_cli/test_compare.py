"""`nasengine compare`: what it prints, and what it answers to bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nasengine._cli.compare import EPILOG
from tests.nasengine._cli.conftest import Run
from tests.nasengine.comparisons import ALGORITHMS, COMPARE, KNOWN, known_cost
from tests.nasengine.runs import flags, record


@pytest.fixture
def command(small: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    known_cost(monkeypatch)
    return ("compare", "--algo", ALGORITHMS, "--data", small, *flags(COMPARE), "--budget", "5s", "--seeds", "2")


def test_a_comparison_is_told_and_kept(cli: Run, command: tuple[str, ...]) -> None:
    code, out, err = cli(*command, "--out", "run")
    assert code == 0 and err == ""
    assert "calibrate: time a few steps of every algorithm, one at a time\n" in out
    assert "darts: 1 s a step, 3 s an epoch of 2, 1 s for the answer\n" in out
    assert "darts gets 1 epoch, about 4 s\n" in out and "random:samples=2 gets 2 epochs, about 5 s\n" in out
    assert re.search(r"search 4/4  random-samples=2/seed-1  validation with shared weights [\d.]+%", out)
    assert re.search(r"training 1/4  darts/seed-0  test [\d.]+%", out)
    scores = [f"{one['mean']:.2%} ± {one['deviation']:.2%}" for one in record(Path("run"))["result"]["algorithms"]]
    assert re.search(r"^algorithm +epochs +seconds +in steps +test accuracy +n +parameters$", out, re.MULTILINE)
    for label, epochs, score in zip(KNOWN, (1, 2), scores, strict=True):
        assert re.search(rf"^{label} +{epochs} +[\d.]+ +[\d.]+ +{score} +2 +[\d,]+$", out, re.MULTILINE)
    assert re.search(r"^random:samples=2 less darts: [+-][\d.]+ points", out, re.MULTILINE)
    assert "With n = 2 that is little evidence" in out or "of which a spread" in out
    assert "in run: run.json, compare.csv, curves.csv, compare.svg, compare.png" in out


def test_ctrl_c_tells_how_to_go_on(cli: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nasengine.comparing.perform", stopped)
    code, _, err = cli(*command, "--out", "a run", "--workers", "2")
    assert code == 130
    again = "nasengine compare --out 'a run' --workers 2 --resume"
    assert err == f"nasengine: Stopped in the stage 'search', all is saved: go on with '{again}'.\n"
    assert record(Path("a run"))["status"] == "interrupted"


def test_dry_run_says_epochs_and_time(cli: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasengine._cli.dry_run.calibrated", lambda plan, contender, workers: KNOWN[contender.label])
    monkeypatch.setattr("nasengine._cli.dry_run.training_seconds", lambda plan, workers: 30.0)
    code, out, err = cli(*command, "--dry-run", "--out", "run", "--workers", "2")
    assert code == 0 and err == "" and not Path("run").exists()
    first, *lines = out.splitlines()
    assert first.startswith("comparison on darts and npz-small, budget 5 s a search")
    assert lines == [
        "  darts: 1 epoch of 2 steps, about 4 s a search",
        "  random:samples=2: 2 epochs of 2 steps, about 5 s a search",
        "  4 searches: about 18 s; 4 trainings: about 2 min 00 s",
        "  in all: about 1 min 09 s, 2 at a time, if they do not slow each other",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--algo", "darts,nothing"), r"Unknown algorithm 'nothing' \(known: .*random"),
        (("--algo", "darts,darts"), r"must differ, but 'darts' came twice"),
        (("--algo", "darts"), r"must be of two algorithms or more, but got darts"),
        (("--budget", "0"), r"A budget must be a time above 0 such as 90s, 20m or 1\.5h, but got '0'"),
        (("--budget", "abc"), r"A budget must be a time above 0 .* but got 'abc'"),
        (("--seeds", "0"), r"compare\.seeds must be at least 1, but got 0"),
        (("--seeds", "x"), r"compare\.seeds must be a whole number, but got 'x'"),
        (("--budget", "3s"), r"one epoch of every algorithm, but that of 'darts' .* give --budget 5s or more"),
        (("--workers", "none"), r"Workers must be a number of processes"),
        (("--set", "algo.alphas.lr=1"), r"must stand behind their names, such as rarts:alphas\.lr=0\.01"),
        (("--resume", "--out", "nowhere"), r"There must be a run\.json of nasengine at nowhere"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], told: str, cli: Run, command: tuple[str, ...]) -> None:
    code, _, err = cli(*command, *arguments)
    assert code == 2 and err.count("\n") == 1 and re.search(told, err), err
    assert not re.search(r"[.?!] [A-Z]", err.removeprefix("nasengine: ").rstrip())
    assert not list(Path().rglob("run.json"))


def test_a_space_that_is_not_searched(refuse: Callable[..., str], small: str) -> None:
    assert "must have a supernet, but 'nasbench101' has none" in refuse(
        "compare", "--space", "nasbench101", "--data", small
    )


def test_help(cli: Run) -> None:
    code, out, _ = cli("compare", "--help")
    assert code == 0 and "Compare algorithms at equal cost, over several seeds." in out
    assert " ".join(out.split()).endswith(" ".join(EPILOG.split()))
    listed = re.findall(r"^  (--[\w-]+)", out[: out.rindex("Example:")], flags=re.MULTILINE)
    options = "space algo data seeds budget train-epochs seed device precision set config out resume workers dry-run"
    assert listed == [f"--{name}" for name in options.split()]
