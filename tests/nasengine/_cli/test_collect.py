from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nasengine._cli.collect import EPILOG
from nasengine.collecting import read_labels
from nasengine.labelling import CollectJob
from nasengine.training import TrainJob
from search_spaces.nasbench101 import NASBench101
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import flags, record
from tests.nasengine.test_collecting import COLLECT, rows

Refuse = Callable[..., str]


@pytest.fixture
def command(small: str) -> tuple[str, ...]:
    return ("collect", "--space", "nasbench101", "--data", small, *flags(COLLECT), "--count", "2")


def test_labels_are_told_and_kept(cli: Run, command: tuple[str, ...]) -> None:
    code, out, err = cli(*command)
    path = Path("results/npz-small/nasbench101/labels/seed-0")
    assert code == 0 and err == ""
    first, *labels, blank, spread, seconds, files = out.splitlines()
    assert first == f"{path}: 2 labels, 8 steps each, on cpu" and blank == ""
    table = read_labels(path)
    space = NASBench101(channels=6, stacks=2, cells=1)
    texts = map(space.write, space.from_table(table))
    told = zip(table["score"], table["seconds"], texts, strict=True)
    for number, (line, (score, took, text)) in enumerate(zip(labels, told, strict=True), start=1):
        pattern = rf"label {number}/2  score {score:.2%}  {took:.1f} s  left \d+ s  {re.escape(text)}"
        assert re.fullmatch(pattern, line), line
    best, worst = table["score"].max(), table["score"].min()
    assert spread == f"2 labels, validation scores: best {best:.4g}, median {(best + worst) / 2:.4g}, worst {worst:.4g}"
    assert re.fullmatch(r"seconds: \d+\.\d", seconds) and files == f"in {path}: labels.csv, run.json, history.csv"


def test_flags_are_settings(cli: Run, small: str) -> None:
    arguments = ("--epochs", "1", "--batch-size", "4", "--seed", "3", "--device", "cpu", "--train-portion", "0.25")
    common = ("collect", "--space", "nasbench101", "--data", small, *flags(COLLECT))
    assert cli(*common, *arguments, "--count", "1", "--out", "out").code == 0
    config = record(Path("out"))["config"]
    expected = {"count": 1, "epochs": 1, "batch_size": 4, "seed": 3, "device": "cpu", "repeats": 2, "lr": 0.3}
    assert {name: config["collect"][name] for name in expected} == expected
    assert config["data"]["train_portion"] == 0.25 and config["space"]["channels"] == 6
    assert cli("collect", "--config", "out", "--out", "again").code == 0
    assert rows(Path("out")) == rows(Path("again"))


def test_interrupted_tells_how_to_go_on(
    cli: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli(*command, "--out", "whole").code == 0
    step = TrainJob.step
    seen: list[int] = []

    def interrupted(job: TrainJob, at: int) -> object:
        seen.append(at)
        if len(seen) == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return step(job, at)

    monkeypatch.setattr(TrainJob, "step", interrupted)
    code, out, err = cli(*command, "--out", "a b")
    again = "nasengine collect --out 'a b' --resume"
    assert code == 130 and out.count("label ") == 1
    assert err == f"nasengine: Stopped by SIGINT after step 11 of 16, all is saved: go on with '{again}'.\n"
    assert rows(Path("a b")) == rows(Path("whole"))[:1]
    code, out, _ = cli(*shlex.split(again)[1:])
    assert code == 0 and out.startswith("a b: 2 labels, goes on after 1, on cpu\nlabel 2/2  score ")
    assert rows(Path("a b")) == rows(Path("whole"))
    code, out, _ = cli(*shlex.split(again)[1:], "--count", "3")
    assert code == 0 and out.startswith("a b: 3 labels, goes on after 2, on cpu\nlabel 3/3  score ")
    assert rows(Path("a b"))[:2] == rows(Path("whole"))


def test_dry_run_tells_the_cost_and_writes_nothing(cli: Run, command: tuple[str, ...]) -> None:
    code, out, err = cli(*command, "--dry-run")
    assert code == 0 and err == "" and not list(Path().iterdir())
    assert re.fullmatch(
        r"labels: 2 architectures of nasbench101 on npz-small, 2 times 2 epochs of 2 steps each\n"
        r"  the first 2: [\d,]+ to [\d,]+ parameters\n"
        r"  a step of 8: about \d+\.\d\d s and [\d,]+ MiB\n"
        r"  16 steps: about 0\.0 minutes, without evaluation\n",
        out,
    )


def test_divergence_is_told(cli: Run, command: tuple[str, ...]) -> None:
    code, out, _ = cli(*command, "--set", "collect.lr=1e38", "--set", "collect.clip=0")
    assert code == 0 and "\ndiverged, with the score of chance: 2\n" in out


def test_a_regression_is_told_by_its_error(cli: Run) -> None:
    code, out, _ = cli(
        *("collect", "--data", "sklearn:diabetes", "--space", f"{Path(__file__).parents[1] / 'dense.py'}:Dense"),
        *("--count", "2", "--epochs", "1", "--device", "cpu"),
    )
    assert code == 0 and re.search(r"\nlabel 2/2  score -\d[\d.e+]*  \d", out)


def test_wrong_inputs(refuse: Refuse, cli: Run, command: tuple[str, ...]) -> None:
    assert refuse(*command, "--count", "0") == "collect.count must be at least 1, but got 0."
    assert refuse(*command, "--count", "many") == "collect.count must be a whole number, but got 'many'."
    assert refuse(*command, "--resume", "--out", "none") == (
        "There must be a run.json of nasengine at none, but there is none."
    )
    assert refuse("collect", "--space", "nasbench101", "--data", "sklearn:wine", "--count", "2").startswith(
        "The space 'nasbench101' is for images"
    )
    assert not list(Path().iterdir())
    assert cli(*command, "--out", "out").code == 0
    assert refuse(*command, "--out", "out") == (
        "The run directory out must be new or empty, but holds a run that is finished; give another --out."
    )
    assert refuse("collect", "--out", "out", "--resume") == (
        "The run in out is finished: nothing is left to go on with; ask for more by --count alone, or give another "
        "--out for a new one."
    )
    assert refuse("collect", "--out", "out", "--resume", "--count", "1") == (
        "A collection must go on to at least the labels that it has begun, 2 in out, but --count is 1; ask for more or "
        "give another --out."
    )
    assert refuse("search", "--config", "out") == (
        "out must be of a run of 'nasengine search', but is of one of 'nasengine collect'."
    )
    assert refuse("show", "out").startswith("A run to show must be a search or a training, but the one in out is of ")


def test_the_example_works(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"nasengine (.*)", EPILOG)
    assert example is not None
    begin = CollectJob.begin

    def once(job: CollectJob, number: int, repeat: int) -> TrainJob:
        assert (number, repeat) == (0, 0)
        return begin(job, number, repeat)

    monkeypatch.setattr(CollectJob, "begin", once)
    assert cli(*shlex.split(example[1]), "--count", "1", "--epochs", "1").code == 0
