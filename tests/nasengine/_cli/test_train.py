from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from nasengine._cli.train import EPILOG
from nasengine.training import TrainJob
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import GENOTYPE, TRAIN, assert_same_run, contents, flags, record


def test_a_training_is_told_and_kept(cli: Run, ended: Path) -> None:
    shutil.copytree(ended, "run")
    shutil.rmtree("run/final")
    code, out, err = cli("train", "run", *flags(TRAIN))
    assert code == 0 and err == ""
    assert out.startswith("run/final: 2 epochs of 2 steps on cpu\nepoch 1/2  train loss ")
    found = record(Path("run/final"))["result"]
    assert "Genotype" not in out and f"\ntest accuracy: {found['test_accuracy']:.2%}\n" in out
    assert f"\nparameters: {found['parameters']:,}\nmultiply-adds: {found['multiply_adds']:,}\n" in out
    assert out.endswith("in run/final: run.json, history.csv, network.safetensors\n")
    assert_same_run(Path("run/final"), ended / "final")


def test_other_sources(cli: Run, ended: Path, small: str) -> None:
    genotype = (ended / "genotype.txt").read_text()
    common = ("--data", small, "--set", "space.nodes=1", *flags(TRAIN))
    assert cli("train", "--genotype", genotype, *common, "--out", "a").code == 0
    assert cli("train", "--architecture", ended / "architecture.txt", *common, "--out", "b").code == 0
    assert cli("train", "--config", ended / "final", "--out", "c").code == 0
    for out in ("a", "b", "c"):
        assert_same_run(Path(out), ended / "final")


def test_interrupted_tells_how_to_go_on(cli: Run, small: str, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainJob.step

    def interrupted(job: TrainJob, at: int) -> object:
        if at == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(job, at)

    monkeypatch.setattr(TrainJob, "step", interrupted)
    genotype = (ended / "genotype.txt").read_text()
    code, _, err = cli("train", "--genotype", genotype, "--data", small, "--set", "space.nodes=1", *flags(TRAIN))
    again = "nasengine train --out results/npz-small/darts/final/seed-0 --resume"
    assert code == 130
    assert err == f"nasengine: Stopped by SIGINT after step 3 of 4, all is saved: go on with '{again}'.\n"
    assert cli(*shlex.split(again)[1:]).code == 0
    assert_same_run(Path("results/npz-small/darts/final/seed-0"), ended / "final")


def test_dry_run_tells_the_cost_and_writes_nothing(cli: Run, small: str, ended: Path) -> None:
    before = contents(ended)
    common = (*flags(TRAIN), "--dry-run")
    for source in ((ended,), ("--genotype", GENOTYPE, "--data", small, "--set", "space.nodes=1")):
        code, out, err = cli("train", *source, *common)
        assert code == 0 and err == "" and not list(Path().iterdir())
        assert re.fullmatch(
            r"training: darts on npz-small\n"
            r"  network: [\d,]+ parameters, [\d,]+ multiply-adds\n"
            r"  a step of 16: about \d+\.\d\d s and [\d,]+ MiB, of which [\d,]+ grow with the batch\n"
            r"  4 steps: about 0\.0 minutes, without evaluation\n",
            out,
        )
    assert contents(ended) == before


def test_the_example_works(cli: Run, ended: Path) -> None:
    example = re.search(r"nasengine (.*)", EPILOG)
    assert example is not None
    arguments = shlex.split(example[1])
    shutil.copytree(ended, arguments[1], ignore=shutil.ignore_patterns("final"))
    assert (
        cli(*arguments, *flags(("space.channels=2", "space.layers=3")), "--epochs", "1", "--batch-size", "16").code == 0
    )
    assert record(Path(arguments[1]) / "final")["status"] == "finished"


def test_the_two_accuracies_of_a_training_that_holds_a_part_out_are_told_apart(cli: Run, ended: Path) -> None:
    shutil.copytree(ended, "run")
    shutil.rmtree("run/final")
    code, out, err = cli("train", "run", *flags(TRAIN), "--set", "train.valid_portion=0.5")
    assert code == 0 and err == ""
    assert re.search(r"\nepoch 1/2  train loss \S+  acc \S+%  valid acc \S+%  ", out)
