"""How a comparison looks in the terminal: what is calibrated, a line for each search and training, a table at last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from nasengine._cli.progress import Progress, duration
from nasengine._cli.work_progress import WorkProgress
from nasengine.calibrating import Calibration
from nasengine.comparing import CURVES, TABLE, CompareObserver, CompareResult
from nasengine.comparison import FINAL, shown
from nasengine.loop import Job
from nasengine.run_directory import Row, Run, read_record
from nasengine.wording import counted
from nasengine.workers import Event, Work

_MEANS = {
    "calibrate": "time a few steps of every algorithm, one at a time",
    "search": "as long as the budget, all algorithms and seeds",
    "train": "what they found, in one way, and test it once",
}
_WORDS = {"stood": "done before", "finished": "", "diverged": "diverged", "again": "taken up again: its worker died"}


class _Bar(Progress):
    """The bar of a run without a line for every epoch."""

    def started(self, run: Run, job: Job, step: int) -> None:
        self.quiet = True
        super().started(run, job, step)
        self.quiet = False

    def epoch_ended(self, epoch: int, row: Row) -> None:
        del epoch, row

    def note(self, text: str) -> None:
        del text

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._print(text)

    def _print(self, line: str) -> None:
        if not getattr(self, "quiet", False):
            super()._print(line)


class CompareProgress(CompareObserver):
    """Shows a comparison: with a bar for each run where they are made in this process, else one for all of them."""

    search: _Bar
    training: _Bar

    def __init__(self, alone: bool) -> None:
        self.path, self._alone, self._stage = Path(), alone, ""
        self.search, self.training = _Bar(), _Bar()
        self._works = {name: WorkProgress(what, _name) for name, what in (("search", "search"), ("train", "training"))}

    def __enter__(self) -> CompareProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def began(self, stage: str, path: Path) -> None:
        self.path, self._stage = path, stage
        typer.echo(f"\n{stage}: {_MEANS[stage]}" if stage != "calibrate" else f"{path}\n\n{stage}: {_MEANS[stage]}")
        if self._alone and stage in self._works:
            self._bar().__enter__()

    def calibrated(self, label: str, calibration: Calibration) -> None:
        numbers = f"{calibration.step:.3g} s a step, {calibration.epoch:.3g} s an epoch of {calibration.steps}"
        typer.echo(f"{label}: {numbers}, {calibration.answer:.3g} s for the answer")

    def chosen(self, label: str, epochs: int, seconds: float) -> None:
        typer.echo(f"{label} gets {counted(epochs, 'epoch')}, about {duration(seconds)}")

    def works(self, work: Work, event: Event, done: int, total: int) -> None:
        if not self._alone:
            self._works[self._stage](work, event, done, total)
        elif event != "started":
            what = "search" if self._stage == "search" else "training"
            said = _WORDS[event] or _told(work)
            self._bar().line(f"{what} {done}/{total}  {_name(work)}  {said}")

    def ended(self, stage: str, seconds: float) -> None:
        self._stop()
        typer.echo(f"{stage}: {duration(seconds)}")

    def _bar(self) -> _Bar:
        return self.search if self._stage == "search" else self.training

    def _stop(self) -> None:
        for works in self._works.values():
            works.stop()
        for bar in (self.search, self.training):
            bar.__exit__()


def _name(work: Work) -> str:
    search = work.directory.parent if work.directory.name == FINAL else work.directory
    return f"{search.parent.name}/{search.name}"


def _told(work: Work) -> str:
    """What came of a run that was made in this process."""
    result: dict[str, Any] = read_record(work.directory)["result"]
    for part, word in (("derived_", "validation with shared weights"), ("test_", "test")):
        for name, value in result.items():
            if name.startswith(part) and name != "test_size":
                return f"{word} {shown(name, value)}  {duration(result['seconds'])}"
    return ""


def print_comparison(result: CompareResult) -> None:
    """The table, what the differences are worth, and where the files are."""
    table = result.table
    column = next(name for name in table if str(name).startswith("test_"))
    measure = str(column).removeprefix("test_")
    width = max(len("algorithm"), *(len(summary.label) for summary in result.summaries))
    word = f"test {measure.replace('_', ' ')}"
    heads = f"{'epochs':>6}  {'seconds':>8}  {'in steps':>8}  {word:>18}  {'n':>2}  {'parameters':>11}"
    typer.echo(f"\n{'algorithm':<{width}}  {heads}")
    for summary in result.summaries:
        rows = table[table["algorithm"] == summary.label]
        spread = "" if summary.deviation is None else f" ± {shown(measure, summary.deviation)}"
        score = "-" if summary.mean is None else f"{shown(measure, summary.mean)}{spread}"
        numbers = [rows[name].dropna().mean() for name in ("search_seconds", "search_seconds_in_steps")]
        size = rows["parameters"].dropna()
        typer.echo(
            f"{summary.label:<{width}}  {int(rows['epochs'].iloc[0]):>6}  {numbers[0]:>8.1f}  {numbers[1]:>8.1f}  "
            f"{score:>18}  {len(summary.scores):>2}  {f'{size.mean():,.0f}' if len(size) else '-':>11}"
        )
    typer.echo("")
    for sentence in result.record["result"]["advice"]:
        typer.echo(sentence)
    files = ["run.json", TABLE, CURVES, "compare.svg", "compare.png"]
    typer.echo(f"in {result.path}: {', '.join(files)}; a directory for each algorithm")
