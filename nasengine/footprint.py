"""Seconds and bytes of the derived networks of a space, as limits need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from nasengine.architecture import Architecture
from nasengine.config import LatencySettings
from nasengine.latency import LatencyModel, Progress
from nasengine.outline import Sketches
from nasengine.runtimes import Bench
from nasengine.space import Space
from nasengine.task import Shapes

_SECONDS = 0.2
_IN_TURNS = 16


class Footprint:
    """Latency and memory of the derived networks of a space in their final form; nothing is made before it is asked.

    Args:
        space, shapes: of the networks; the space in its final form.
        settings: on what the latency is measured.
        progress: see `nasengine.latency.Progress`.
        guesses: latencies come from the table even where that is not trusted, for whoever measures in the end.
    """

    def __init__(
        self,
        space: Space,
        shapes: Shapes,
        settings: LatencySettings,
        progress: Progress = lambda stage, done, total: None,
        guesses: bool = False,
    ) -> None:
        self.space, self.shapes, self.settings, self._progress = space, shapes, settings, progress
        self._rough, self._guesses = False, guesses

    @cached_property
    def sketches(self) -> Sketches:
        """For one input."""
        return Sketches(self.space, self.shapes)

    @cached_property
    def model(self) -> LatencyModel:
        """What tells latencies. Raises DeviceError and MissingExtraError."""
        return latency_model(self.sketches, self.settings, self._progress)

    def latency(self, architecture: Architecture) -> float:
        """Seconds of a forward pass."""
        if self._rough:
            return self.model.total(architecture)
        return self.model.guess(architecture) if self._guesses else self.model(architecture)

    def memory(self, architecture: Architecture) -> int:
        """Bytes as `nasengine.cost.memory` counts them."""
        return self.sketches(architecture).memory

    def prepare(self, architectures: Sequence[Architecture]) -> None:
        """Measures together what their latencies need."""
        if self._rough or self.model.calibration().trusted or self._guesses:
            self.model.prepare(architectures)

    def measure(self, architecture: Architecture) -> float:
        """Seconds of a forward pass, measured end-to-end; a calibration to come is fitted to this network as well."""
        self.model.include(architecture)
        return self.model.measure([architecture], _SECONDS)[0].seconds

    def measured(self, architectures: Sequence[Architecture]) -> list[float]:
        """Seconds of forward passes, measured end-to-end, a few networks in turns."""
        parts = [architectures[start : start + _IN_TURNS] for start in range(0, len(architectures), _IN_TURNS)]
        return [timing.seconds for part in parts for timing in self.model.measure(part, _SECONDS)]

    def is_calibrated(self) -> bool:
        """Whether latencies can be told without measuring whole networks first."""
        return self.model.is_calibrated()

    @contextmanager
    def roughly(self) -> Iterator[None]:
        """Latencies are the bare sums over pieces, which need no calibration."""
        self._rough = True
        try:
            yield
        finally:
            self._rough = False

    def facts(self, architecture: Architecture) -> dict[str, Any]:
        """The latency of an architecture, how it was told, and what a measurement of its network gives."""
        calibration = self.model.calibration()
        (timing,) = self.model.measure([architecture])
        self.model.save()
        return {
            "latency": self.latency(architecture),
            "latency_by": "table" if calibration.trusted else "measurement",
            "latency_measured": timing.seconds,
            "latency_table_error": calibration.median_error,
            "latency_on": self.model.machine,
        }


def latency_model(sketches: Sketches, settings: LatencySettings, progress: Progress) -> LatencyModel:
    """The model of a space, by its sketches where the batch size is theirs. Raises DeviceError, MissingExtraError."""
    bench = Bench(settings, sketches.shapes)
    if settings.batch_size != sketches.batch_size:
        sketches = Sketches(sketches.space, sketches.shapes, settings.batch_size)
    return LatencyModel(sketches, bench, progress)
