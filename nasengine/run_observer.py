"""What sees a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nasengine.loop import Observer


class RunObserver:
    """Sees a pipeline; the command line shows it. This one is silent.

    Attributes:
        search, labels: see these stages as observers of their verbs.
        works: is told of labels and final trainings that have ended.
        ranking: sees the stages of the ranking and of the front.
    """

    search: Observer = Observer()
    labels: Observer = Observer()

    def began(self, stage: str, path: Path) -> None:
        """A stage begins, or goes on."""

    def stood(self, stage: str) -> None:
        """The result of a stage was there already."""

    def ended(self, stage: str, seconds: float, said: str) -> None:
        """A stage has ended, and what came of it in a few words."""

    def works(self, *event: Any) -> None:
        """See `nasengine.workers.Watch`."""

    def ranking(self, stage: str, done: int, total: int) -> None:
        """See `nasengine.ranking.Progress`."""
