"""How a pipeline looks in the terminal: a line for each stage, and the progress of its verb below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from nasengine._cli.progress import LabelProgress, Progress, StageProgress, duration
from nasengine._cli.work_progress import WorkProgress
from nasengine.run_observer import RunObserver
from nasengine.wording import counted

_MEANS = {
    "search": "search the space",
    "propose": "take candidates from the search",
    "collect": "score a part of them",
    "rank": "rank all by a predictor",
    "train": "train the best",
    "test": "test the winner",
    "front": "what is best at which cost",
    "export": "export and check",
    "report": "report",
}


class RunProgress(RunObserver):
    """Shows a pipeline."""

    search: Progress
    labels: LabelProgress

    def __init__(self) -> None:
        self.path = Path()
        self.search, self.labels, self._ranking = Progress(), LabelProgress(), StageProgress()
        self._works = {"collect": WorkProgress("label"), "train": WorkProgress("training")}
        self._shown: Progress | StageProgress | None = None
        self._stage = ""

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def began(self, stage: str, path: Path) -> None:
        self.path, self._stage = path, stage
        typer.echo(f"\n{stage}: {_MEANS[stage]}")
        shown: dict[str, Progress | StageProgress] = {"search": self.search, "collect": self.labels}
        self._shown = {**shown, "rank": self._ranking, "front": self._ranking}.get(stage)
        if self._shown is not None:
            self._shown.__enter__()

    def stood(self, stage: str) -> None:
        typer.echo(f"\n{stage}: done before")

    def ended(self, stage: str, seconds: float, said: str) -> None:
        self._stop()
        typer.echo(f"{stage}: {said}  ({duration(seconds)})")

    def works(self, *event: Any) -> None:
        self.labels.stop()
        self._works[self._stage](*event)

    def ranking(self, stage: str, done: int, total: int) -> None:
        self._ranking(stage, done, total)

    def _stop(self) -> None:
        for works in self._works.values():
            works.stop()
        if self._shown is not None:
            self._shown.__exit__()
            self._shown = None


def print_pipeline(path: Path, record: Mapping[str, Any]) -> None:
    """The winner, what the predictor was worth, and where the files are."""
    from nasengine._cli.progress import print_result
    from nasengine.drawing import text
    from nasengine.listing import show

    result = record["result"]
    shown = show(path / result["winner"])
    typer.echo(f"\n{text(shown.graphs)}\n\n{shown.text}\n")
    worth = result["predictor"]
    typer.echo(f"the winner: candidate {result['rank']} by the predictor, trained in {path / result['winner']}")
    if "kendall_tau" in worth:
        typer.echo(
            f"the predictor: Kendall tau {worth['kendall_tau']:.2f} with the final trainings of "
            f"{counted(worth['trained_candidates'], 'candidate')}, regret {worth['regret']:.4f}, "
            f"{worth['saved_seconds']:,.0f} s of labelling saved"
        )
    print_result(path, record)
