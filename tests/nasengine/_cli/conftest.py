from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import nasengine
from nasengine._cli.main import main
from nasengine.errors import InterruptedRun
from nasengine.loop import Observer
from tests.nasengine.runs import GENOTYPE, SEARCH, TRAIN


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command line in this process, in an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def refuse(cli: Run) -> Callable[..., str]:
    """Runs a command line that must fail, and gives its one sentence."""

    def run(*arguments: object) -> str:
        code, out, err = cli(*arguments)
        assert code == 2 and out == ""
        assert err.startswith("nasengine: ") and err.count("\n") == 1 and err.endswith((".\n", "?\n"))
        sentence = err.removeprefix("nasengine: ").rstrip("\n")
        assert not re.search(r"[.?!] [A-Z]", sentence), sentence
        return sentence

    return run


class _Stopping(Observer):
    def saved(self, step: int) -> None:
        raise InterruptedRun("enough")


@pytest.fixture
def stopped(small: str, tmp_path: Path) -> Path:
    """The directory of a search that was stopped after its first epoch."""
    with pytest.raises(InterruptedRun):
        nasengine.search(task=small, settings=SEARCH, out=tmp_path / "stopped", observer=_Stopping())
    return tmp_path / "stopped"


@pytest.fixture
def stopped_training(small: str, tmp_path: Path) -> Path:
    """The directory of a training that was stopped after its first epoch."""
    settings, out = ("space.nodes=1", *TRAIN), tmp_path / "training"
    with pytest.raises(InterruptedRun):
        nasengine.train(genotype=GENOTYPE, task=small, settings=settings, out=out, observer=_Stopping())
    return out
