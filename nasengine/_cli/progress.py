"""How a run looks in the terminal: a bar with time left while it steps, a line for each epoch, the cells at the end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from nasengine.drawing import text
from nasengine.listing import show
from nasengine.loop import Job, Observer
from nasengine.pricing import COSTS
from nasengine.run_directory import Row, Run
from nasengine.settings import in_seconds
from nasengine.wording import counted

if TYPE_CHECKING:
    from nasengine.pareto import FrontResult
    from nasengine.ranking import RankResult

_PARTS = ("train", "valid", "supernet", "derived", "test")  # begin the names of the columns with the measure
_BENCHMARK = "benchmark_"
_FILES = (
    *("run.json", "history.csv", "cells.svg", "cells.png", "network.safetensors"),
    *("candidates.csv", "front.csv", "export", "report.html"),
)
_SHOWN, _PARAMETERS = 20, "parameters"
_COUNTED = {
    "reading": "tables",
    "enumerating": "the space",
    "encoding": "{architecture}",
    "fitting": "the predictor",
    "evaluating": "by {fit}",
    "ranking": "{different architecture}",
    "evolving": "{generation}",
    "writing": "files",
    "opening": "the network",
    "exporting": "{format}",
    "comparing": "{file} in fresh processes",
    "pieces": "by {operation}",
    "networks": "end-to-end",
}


class Progress(Observer):
    """Shows a run; a bar only where there is a terminal."""

    def __init__(self) -> None:
        self.path = Path()
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("epoch", total=None, status="", left="?")
        self._steps = self._per_epoch = self._done = 0
        self._pace = self._spent = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bar away, as when works have one of their own: two at once overwrite each other."""
        if self._bar.live.is_started:
            self._bar.stop()

    def started(self, run: Run, job: Job, step: int) -> None:
        self.path, self._per_epoch = run.path, job.steps_per_epoch
        self._steps, self._done = job.epochs * job.steps_per_epoch, step
        where = (
            f"goes on after step {step}"
            if step
            else f"{counted(job.epochs, 'epoch')} of {counted(job.steps_per_epoch, 'step')}"
        )
        self._print(f"{run.path}: {where} on {job.device}")
        self._bar.update(self._task, total=self._steps, completed=step)

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        self._pace = seconds_per_step if self._pace == 0 else 0.9 * self._pace + 0.1 * seconds_per_step
        self._done = step
        status = f"{_words(means)}  {self._pace:.2f} s/step"
        self._bar.update(
            self._task,
            completed=step,
            status=status,
            left=duration(self._left()),
            description=f"epoch {(step - 1) // self._per_epoch + 1}",
        )

    def epoch_ended(self, epoch: int, row: Row) -> None:
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        pace = f"{self._pace:.2f} s/step  left {duration(self._left())}"
        self._print(f"epoch {epoch}/{self._steps // self._per_epoch}  {_words(numbers)}  {pace}")

    def note(self, text: str) -> None:
        self._print(f"  {text}")

    def _left(self) -> float:
        return (self._steps - self._done) * self._pace

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False)


class LabelProgress(Progress):
    """Shows a collection of labels: each is an epoch of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self._first, self._taken, self._measure = 0, 0.0, "accuracy"

    def started(self, run: Run, job: Job, step: int) -> None:
        self.path, self._per_epoch = run.path, job.steps_per_epoch
        self._steps, self._done, self._first = job.epochs * job.steps_per_epoch, step, step
        where = f"goes on after {step // self._per_epoch}" if step else f"{counted(job.steps_per_epoch, 'step')} each"
        self._print(f"{run.path}: {counted(job.epochs, 'label')}, {where}, on {job.device}")
        self._bar.update(self._task, total=self._steps, completed=step, description="label")

    def stepped(self, step: int, means: Mapping[str, float], seconds_per_step: float) -> None:
        self._done, self._taken = step, self._taken + seconds_per_step * (step - self._done)
        self._measure = _measure(means)
        number = (step - 1) // self._per_epoch + 1
        self._bar.update(self._task, completed=step, description=f"label {number}", left=duration(self._left()))

    def epoch_ended(self, epoch: int, row: Row) -> None:
        value = _form(self._measure, digits=2).format(row["score"])
        numbers = f"score {value}  {float(row['label_seconds']):.1f} s  left {duration(self._left())}"
        self._print(f"label {epoch}/{self._steps // self._per_epoch}  {numbers}  {row['genotype']}")

    def _left(self) -> float:
        """By the mean of all steps: those of one network say little about the next."""
        return (self._steps - self._done) * self._taken / max(1, self._done - self._first)


class StageProgress:
    """Shows the stages of a verb: a bar with time left where there is a terminal, and a line after each."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("reading", total=1, left="?")
        self._stage, self._since = "", 0.0

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage != self._stage:
            self._stage, self._since = stage, now
            self._bar.reset(self._task, description=stage, total=total)
        taken = now - self._since
        left = duration(taken / done * (total - done)) if done else "?"
        self._bar.update(self._task, completed=done, total=total, left=left)
        if done == total:
            what = re.sub(r"\{(.+)\}", lambda noun: counted(total, noun[1]), _COUNTED[stage])
            self._console.print(f"{stage} {what}: {taken:.1f} s", markup=False)


def print_ranking(result: RankResult) -> None:
    """The best candidates, what was measured, where the files are, and what to do next."""
    from nasengine.commands import training_command
    from nasengine.ranking import FILES

    shown, found = min(_SHOWN, len(result.texts)), result.record["result"]
    numbers = "parameters" in result.top
    typer.echo(f"\n{'rank':>4}  {'score':>10}   {'':9}{f'  {_PARAMETERS:>11}' if numbers else ''}  architecture")
    for row in range(shown):
        entry = result.top.iloc[row]
        size = f"  {int(entry['parameters']):>11,}" if numbers else ""
        known = "" if entry["known"] != entry["known"] else f"  (label {entry['known']:.4g})"
        guessed = f"{entry['score']:>10.5g} ± {entry['uncertainty']:<9.2g}"
        typer.echo(f"{int(entry['rank']):>4}  {guessed}{size}  {result.texts[row]}{known}")
    apart = "" if found["networks"] == found["labels"] else f" of {counted(found['networks'], 'different network')}"
    typer.echo(f"\n{counted(found['candidates'], 'candidate')} by {counted(found['labels'], 'label')}{apart}")
    _print_measures(found)
    if result.proposals is not None:
        typer.echo(f"{len(result.proposals)} to label next, none of them labelled: next.csv")
    files = [name for name in FILES if (result.path / name).exists()]
    typer.echo(f"seconds: {found['seconds']:,.1f}\nin {result.path}: {', '.join(['run.json', *files])}")
    typer.echo(f"train the first: {training_command(result.record['config'], result.texts[0])}")


def _print_measures(found: Mapping[str, Any]) -> None:
    if "measures" not in found:
        typer.echo("not judged: that takes 20 labels whose scores differ, and is left out by --no-evaluate")
        return
    typer.echo(f"on labels held out, mean and deviation of {counted(found['draws'], 'draw')} (k = {found['k']}):")
    for name, value in found["measures"].items():
        spread = "" if value["deviation"] is None else f" ± {value['deviation']:.3g}"
        typer.echo(f"  {name.replace('_at_', '@').replace('_', ' '):<12} {value['mean']:>8.3g}{spread}")
    typer.echo(found["advice"])


def print_front(result: FrontResult) -> None:
    """The front, where the files are, and what to do next."""
    from nasengine.commands import training_command
    from nasengine.pareto import FILES

    shown, names = min(_SHOWN, len(result.texts)), [name for name in COSTS if name in result.front]
    typer.echo(f"\n{'score':>10}   {'':9}{''.join(f'  {_heading(name):>15}' for name in names)}  architecture")
    for row in range(shown):
        entry = result.front.iloc[row]
        costs = "".join(f"  {_cost(name, float(entry[name])):>15}" for name in names)
        typer.echo(f"{entry['score']:>10.5g} ± {entry['uncertainty']:<9.2g}{costs}  {result.texts[row]}")
    if shown < len(result.texts):
        typer.echo(f"  … {len(result.texts) - shown} more in front.csv")
    found, best = result.record["result"], int(result.front["score"].to_numpy().argmax())
    typer.echo(f"\n{found['points']} of {found['evaluated']:,} architectures are on the front; scores are guessed")
    if found["trained_with"]:
        typer.echo(f"costs are of the network {found['trained_with']} (another form by --set final.NAME=VALUE)")
    if found.get("latency_by") == "measurement":
        error = f"{found['latency_table_error']:.0%}"
        typer.echo(f"the table of operations is off by {error} here: it led the search, and the front was measured")
    typer.echo(f"seconds: {found['seconds']:,.1f}\nin {result.path}: {', '.join(['run.json', *FILES])}")
    typer.echo(f"train the best: {training_command(result.record['config'], result.texts[best])}")


def _heading(cost: str) -> str:
    return {"latency": "latency (ms)", "memory": "memory (MB)"}.get(cost, cost.replace("_", "-"))


def _cost(name: str, value: float) -> str:
    scale = {"latency": 1e3, "memory": 1e-6}.get(name)
    return f"{value * scale:,.3f}" if scale else f"{value:,.0f}"


def print_labels(path: Path, record: Mapping[str, Any]) -> None:
    """How the labels are spread, and where they are."""
    result = record.get("result", {})
    spread = ", ".join(f"{name} {result[f'{name}_score']:.4g}" for name in ("best", "median", "worst"))
    typer.echo(f"\n{counted(result['labels'], 'label')}, validation scores: {spread}")
    if result["diverged"]:
        typer.echo(f"diverged, with the score of chance: {result['diverged']}")
    typer.echo(f"seconds: {result['seconds']:,.1f}\nin {path}: labels.csv, run.json, history.csv")


def print_run(path: Path) -> None:
    """The cells, the text form and the result of a run."""
    shown = show(path)
    typer.echo(f"\n{text(shown.graphs)}\n\n{shown.text}")
    print_result(path, shown.record or {})


def print_result(path: Path, record: Mapping[str, Any]) -> None:
    """The numbers that a run ended with, and where its files are."""
    result = record.get("result", {})
    measure = _measure(result)
    word, form = measure.replace("_", " "), _form(measure, digits=2)
    lines = {
        f"supernet_{measure}": f"validation {word} of the supernet: {form}",
        f"derived_{measure}": f"validation {word} of the cell with inherited weights: {form}",
        f"valid_{measure}": f"validation {word}, on what was held out: {form}",
        f"test_{measure}": f"test {word}: {form}",
        "parameters": "parameters: {:,}",
        "multiply_adds": "multiply-adds: {:,}",
        "memory": "memory: {:,} bytes",
        "seconds": "seconds: {:,.1f}",
    }
    if form := result.get("trained_with"):
        lines["parameters"] += f", {form}"
    typer.echo("")
    for name, line in lines.items():
        if name in result:
            typer.echo(line.format(result[name]))
    _print_latency(record)
    for name, value in result.items():
        if name.startswith(_BENCHMARK):
            typer.echo(f"benchmark, {name.removeprefix(_BENCHMARK).replace('_', ' ')}: {value:.2%}")
    typer.echo(f"in {path}: {', '.join(name for name in _FILES if (path / name).exists())}")


def _print_latency(record: Mapping[str, Any]) -> None:
    """What the network takes by whatever kept the limit, by a measurement at the end, and whether these disagree."""
    result = record.get("result", {})
    if "latency_measured" not in result:
        return
    limit, measured = record["config"]["search"]["max_latency"], float(result["latency_measured"])
    table = result["latency_by"] == "table"
    by = "by the table of operations" if table else "measured when the network was chosen"
    typer.echo(f"latency, {by}, which kept --max-latency: {in_seconds(result['latency'])}")
    typer.echo(f"latency, measured at the end: {in_seconds(measured)}")
    if limit is not None and measured > limit:
        off = f" (its median error is {result['latency_table_error']:.1%})" if table else ""
        typer.echo(
            f"Note: the measured latency is above the limit of {in_seconds(limit)}, which was kept "
            f"{by}{off}; for a network that measures less give a lower --max-latency."
        )


def _words(values: Mapping[str, float]) -> str:
    measure = _measure(values)
    word, form = "acc" if measure == "accuracy" else measure.replace("_", " "), _form(measure, digits=1)
    shown = {
        "train_loss": "train loss {:.3f}",
        f"train_{measure}": f"{word} {form}",
        "valid_loss": "valid loss {:.3f}",
        f"valid_{measure}": f"{'' if 'valid_loss' in values else 'valid '}{word} {form}",
        f"supernet_{measure}": f"supernet {form}",
        f"derived_{measure}": f"derived {form}",
        "alpha_entropy": "entropy {:.3f}",
    }
    words = [line.format(values[name]) for name, line in shown.items() if name in values]
    known = [f"benchmark {value:.1%}" for name, value in values.items() if name.startswith(_BENCHMARK)]
    return "  ".join([*words, *known[:1]])


def _measure(names: Iterable[str]) -> str:
    """The name of the measure by the columns that end in it; "accuracy" where there are none."""
    pairs = (name.split("_", 1) for name in names if "_" in name)
    return next((rest for part, rest in pairs if part in _PARTS and rest not in ("loss", "size")), "accuracy")


def _form(measure: str, digits: int) -> str:
    """How a value is written: a share in per cent, any other number with 4 significant digits."""
    return f"{{:.{digits}%}}" if measure.endswith("accuracy") else "{:.4g}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
