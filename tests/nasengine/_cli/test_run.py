"""`nasengine run`: what it would cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import TINY, flags

FEW = ("--candidates", 8, "--labels", 4, "--train", 2, "--seeds", 2, "--train-epochs", 1, "--export", "py")
FINAL = ("final.channels=2", "final.layers=3", "train.batch_size=8", "train.valid_portion=0.25")
STEP = r"  a step of 8: about \d+\.\d\d s and [\d,]+ MiB(, of which [\d,]+ grow with the batch)?\n"


@pytest.mark.parametrize(
    ("score", "labels"),
    [
        ("inherited", r"labels: 4 architectures with the weights of the search, about \d+ s\n"),
        (
            "training",
            r"labels: 4 architectures of darts on npz-small, 1 epoch of 2 steps each\n"
            r"  the first 4: [\d,]+ to [\d,]+ parameters\n"
            + STEP
            + r"  8 steps: about .* minutes, without evaluation\n",
        ),
    ],
)
def test_dry_run_tells_the_stages_and_writes_nothing(cli: Run, small: str, score: str, labels: str) -> None:
    settings = flags((*TINY, *FINAL, "collect.epochs=1", "collect.batch_size=8", "search.batch_size=8"))
    code, out, err = cli(
        *("run", "--data", small, *settings, "--epochs", 2, "--device", "cpu", *FEW, "--score", score),
        *("--against", "memory", "--workers", 2, "--dry-run", "--out", "run"),
    )
    assert code == 0 and err == "" and not list(Path().iterdir())
    assert re.fullmatch(
        r"search: darts by rarts on npz-small, 2 epochs of 2 steps\n"
        r"  supernet: [\d,]+ parameters, 4 choices\n"
        + STEP
        + r"  4 steps: about [\d,]+\.\d minutes, without evaluation\n"
        r"propose: 8 candidates of the search, of which 4 are scored\n" + labels + r"rank: all candidates by "
        r"gaussian-process\n"
        r"train: the best 2 candidates, with 2 seeds each; for one training of a random architecture:\n"
        r"  network: [\d,]+ parameters, [\d,]+ multiply-adds\n" + STEP + r"  \d steps: about .* minutes, without "
        r"evaluation\n"
        r"  4 trainings: about \d+ s\n"
        r"test: the winner alone, once\n"
        r"front: against memory\nexport: py\nreport: report.html\n"
        r"in all: about \d+ s, labels and trainings 2 at a time, if they do not slow each other, without evaluation\n",
        out,
    ), out


def test_dry_run_refuses_as_the_run_does(refuse: object, small: str) -> None:
    assert callable(refuse)
    assert refuse("run", "--data", small, "--labels", 65, "--dry-run").startswith(
        "run.labels must be at most the number of candidates, 64, but is 65; "
    )
    assert refuse("run", "--data", small, "--workers", "0", "--dry-run").startswith("Workers must be a number")
