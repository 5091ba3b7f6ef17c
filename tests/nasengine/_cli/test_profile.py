"""`nasengine profile`, on a machine that is made up."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nasengine import run_directory
from nasengine.task import Shapes
from tests.nasengine._cli.conftest import Run
from tests.nasengine.machines import FakeMachine, sum_of_pieces
from tests.nasengine.runs import GENOTYPE, flags, record

Refuse = Callable[..., str]
SHAPES = Shapes((1, 8, 8), 4)
CELLS = flags(("space.channels=2", "space.layers=3", "space.nodes=1"))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine = FakeMachine(lambda network: 2 * sum_of_pieces(network, SHAPES))
    monkeypatch.setattr("nasengine.footprint.Bench", lambda settings, shapes: machine)
    return machine


def test_a_space(cli: Run, small: str) -> None:
    code, out, err = cli("profile", "--space", "darts", *CELLS, "--data", small, "--count", 6)
    assert code == 0 and err == ""
    assert "fake, torch (), threads 1, batch size 1\n" in out
    rows = re.findall(r"^ *([\d.]+) ms +[\d.]+ ms - [\d.]+ ms +([\d.]+) ms +([\d,]+) .*$", out, flags=re.MULTILINE)
    assert len(rows) == 6 and all(measured == predicted for measured, predicted, _ in rows)
    assert out.count("smallest\n") == out.count("largest\n") == 1
    assert "on 3 networks that it was not fitted to: median error 0.0%, worst 0.0%, Kendall tau 1.000\n" in out


def test_a_table_that_is_not_believed_says_so(cli: Run, small: str, fake: FakeMachine) -> None:
    count = iter(range(100))
    fake.latency = lambda network: 0.001 * (1 + next(count) % 5)
    code, out, _ = cli("profile", *CELLS, "--data", small, "--count", 8)
    assert code == 0
    assert "That is above 10%: latencies are measured end-to-end in place of the table.\n" in out


@pytest.mark.parametrize("part", [".", "final"])
def test_a_run(cli: Run, ended: Path, part: str) -> None:
    """A search stands for the network in its final form, a training for the one it trained."""
    code, out, err = cli(
        "profile", ended / part, *(flags(("space.channels=2", "space.layers=3")) if part == "." else ())
    )
    assert code == 0 and err == ""
    form = "as it is trained, final.auxiliary=true" if part == "." else ""
    assert (f"\nthe network {form} (another form by --set final.NAME=VALUE)\n" in out) == (part == ".")
    assert "\nlatency: the floor, which the fastest passes come to again and again; quartiles: of all passes" in out
    trained = record(ended / "final")["result"]
    row = next(line for line in out.splitlines() if "Genotype" in line)
    assert f" {trained['parameters']:,} " in row and f" {trained['multiply_adds']:,} " in row
    assert row.endswith(trained["genotype"])
    assert "by operation, each alone, " in out and re.search(r"^ +[\d.]+% +\d+ x ", out, flags=re.MULTILINE)


def test_the_final_form_of_a_search_is_measured(cli: Run, small: str) -> None:
    common = ("search", "--data", small, *CELLS, "--epochs", 1, "--batch-size", 8, "--device", "cpu")
    assert cli(*common, *flags(("final.channels=4", "final.layers=3")), "--out", "run").code == 0
    code, out, _ = cli("profile", "run")
    assert code == 0 and "\nthe network as it is trained, final.channels=4 final.auxiliary=true (" in out
    assert f" {record(Path('run'))['result']['parameters']:,} " in out
    code, out, _ = cli("profile", "run", *flags(("final.channels=2", "final.auxiliary=false")))
    assert code == 0 and "the network as" not in out


def test_a_pipeline(cli: Run, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run_directory._PARTS, "run", ())
    run = {"id": "0", "verb": "run", "status": "finished", "config": {}, "facts": {}, "result": {"winner": "final"}}
    (ended / "run.json").write_text(__import__("json").dumps(run))
    code, out, _ = cli("profile", ended)
    assert code == 0 and record(ended / "final")["result"]["genotype"] in out


def test_an_architecture(cli: Run, small: str) -> None:
    code, out, _ = cli("profile", "--space", "darts", *CELLS, "--data", small, "--architecture", f" {GENOTYPE}\n=")
    assert code == 2
    Path("a.txt").write_text(GENOTYPE)
    code, out, _ = cli("profile", "--space", "darts", *CELLS, "--data", small, "--architecture", "a.txt")
    assert code == 0 and GENOTYPE in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--runtime", "tvm"), "latency.runtime must be torch or onnxruntime, but got 'tvm'."),
        (("--threads", "0"), "latency.threads must be at least 1, but got 0."),
        (("--threads", "two"), "latency.threads must be a whole number, but got 'two'."),
        (("--count", "many"), "--count must be a whole number, but got 'many'."),
        (("--count", "2"), "A space must be profiled by 4 networks or more, but got 2; raise --count."),
        (
            ("somewhere", "--space", "darts"),
            r"must be a run or an architecture of a space, but got both; leave out RUN",
        ),
        (("somewhere",), "A run must be a directory that nasengine wrote, but somewhere is missing."),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input(refuse: Refuse, arguments: tuple[str, ...], told: str) -> None:
    assert told in refuse("profile", *arguments)


def test_a_device_that_is_not_there(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    from nasengine.runtimes import Bench

    monkeypatch.setattr("nasengine.footprint.Bench", Bench)
    assert refuse("profile", "--device", "cuda:77").startswith("The device must be one of this machine, cpu")


def test_runs_that_have_no_network(refuse: Refuse, ended: Path, stopped: Path) -> None:
    sentence = refuse("profile", stopped)
    assert "must be a finished search or pipeline, or a training, but the one in" in sentence
    assert "'nasengine search' and running; let it finish, or name --space and --architecture." in sentence
