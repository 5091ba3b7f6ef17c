from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from nasengine._cli.report import EPILOG
from tests.nasengine._cli.conftest import Run
from tests.nasengine.runs import record


def test_what_is_told(cli: Run, ended: Path) -> None:
    code, out, err = cli("report", ended)
    file = ended / "report.html"
    size = file.stat().st_size / 1e6
    assert code == 0 and err == "" and out == f"{file}: {size:.1f} MB, open it in a browser\n"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "test accuracy" in text  # of the training below the search
    assert f"<dd>{record(ended / 'final')['result']['parameters']:,}</dd>" in text


def test_several_runs_and_a_file(cli: Run, ended: Path) -> None:
    assert cli("report", ended, ended / "final", "--out", "both.html").code == 0
    assert "2 runs compared" in Path("both.html").read_text(encoding="utf-8")


def test_wrong_inputs(refuse: Callable[..., str], ended: Path) -> None:
    assert refuse("report") == "A report must be of one run directory or more, but none is given; name one."
    assert refuse("report", "nowhere").startswith("A run must be a directory that nasengine wrote, but nowhere is")
    assert refuse("report", ended, "--out", "no/such/report.html").startswith("no/such/report.html must be writable")


def test_the_example_is_a_command(cli: Run) -> None:
    code, _, err = cli(*shlex.split(EPILOG.removeprefix("Example: nasengine ")))
    assert code == 2 and "seed-0 is missing" in err
