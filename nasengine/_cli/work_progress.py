"""How independent works look in the terminal: a bar with time left, and a line for each that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from nasengine._cli.progress import duration
from nasengine.workers import Event, Work

_TOLD = {
    "stood": "done before",
    "finished": "finished",
    "diverged": "diverged",
    "again": "taken up again: its worker died",
}


class WorkProgress:
    """Shows works as their workers end them: `what` they are, and the name of each."""

    def __init__(self, what: str, name: Callable[[Work], str] = lambda work: work.directory.name) -> None:
        self._what, self._name, self._console = what, name, Console(highlight=False, soft_wrap=True)
        self._bar = Bar(
            TextColumn(what),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None, left="?")
        self._since, self._stood = 0.0, 0

    def __call__(self, work: Work, event: Event, done: int, total: int) -> None:
        self._since = self._since or time.perf_counter()
        if not self._bar.live.is_started and done < total:
            self._bar.start()
        self._since = self._since or time.perf_counter()  # of the first work: others may have been made before
        self._stood += event == "stood"
        made = done - self._stood
        seconds = (time.perf_counter() - self._since) / made * (total - done) if made else 0.0
        left = duration(seconds) if made else "?"
        self._bar.update(self._task, completed=done, total=total, left=left)
        if event != "started":
            self._console.print(
                f"{self._what} {done}/{total}  {self._name(work)} {_TOLD[event]}  left {left}", markup=False
            )
        if done == total:
            self.stop()

    def stop(self) -> None:
        """Takes the bar away."""
        self._bar.stop()
