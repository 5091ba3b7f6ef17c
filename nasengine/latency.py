"""The latency of the networks of a space: a table of pieces, calibrated and checked by whole networks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from torch import nn

from nasengine.architecture import Architecture
from nasengine.config import plain_plugin
from nasengine.latency_cache import Measured, cache_file, load, save
from nasengine.outline import Blank, Piece, Sketches
from nasengine.registry import SPACES
from nasengine.seeding import generator
from nasengine.timing import Timing

TRUSTED: Final = 0.10
"""Median relative error up to which the table is believed."""

_FITTED, _CHECKED = 8, 8  # networks
_SECONDS = 0.25  # a network
_ATTEMPTS = 2
_SAVED_AFTER = 50  # pieces

Progress = Callable[[str, int, int], object]
"""Is called with a stage ("pieces" or "networks"), what is done and what there is in all."""


class Measures(Protocol):
    """What measures; `nasengine.runtimes.Bench` but in tests."""

    def machine(self) -> dict[str, Any]: ...

    def networks(
        self, networks: Sequence[nn.Module], seconds: float = 1.0, progress: Callable[[int, int], object] = ...
    ) -> list[Timing]: ...

    def pieces(self, pieces: Sequence[Piece]) -> list[float]: ...


@dataclass(frozen=True)
class Calibration:
    """How the seconds of whole networks follow from the sums over their pieces: intercept + slope * sum.

    Attributes:
        intercept: seconds a forward pass.
        slope: more than 1 where pieces are faster alone, with all caches warm.
        median_error, worst_error: relative, of networks that were not used for the fit.
        kendall_tau: of the predicted and the measured order of those.
        fitted, checked: pairs of a sum and measured seconds.
    """

    intercept: float
    slope: float
    median_error: float
    worst_error: float
    kendall_tau: float
    fitted: tuple[tuple[float, float], ...]
    checked: tuple[tuple[float, float], ...]

    @property
    def trusted(self) -> bool:
        """Whether the table may stand for measurements."""
        return self.median_error <= TRUSTED

    def predict(self, total: float) -> float:
        """Seconds of a network by the sum over its pieces; never less than a tenth of that sum."""
        return max(self.intercept + self.slope * total, 0.1 * total)


def calibrate(fitted: Sequence[tuple[float, float]], checked: Sequence[tuple[float, float]]) -> Calibration:
    """The least squares of the relative errors on `fitted`, checked on other pairs of a sum and measured seconds."""
    from scipy.stats import kendalltau

    totals, seconds = np.array(fitted).T
    columns = np.stack([1 / seconds, totals / seconds], axis=1)
    intercept, slope = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
    if slope <= 0 or np.ptp(totals) == 0:  # no line through such networks: the ratio alone
        intercept, slope = 0.0, float(np.median(seconds / totals))
    pairs = tuple((float(a), float(b)) for a, b in fitted), tuple((float(a), float(b)) for a, b in checked)
    line = Calibration(float(intercept), float(slope), 0.0, 0.0, 0.0, *pairs)
    predicted, measured = np.array([line.predict(total) for total, _ in checked]), np.array([s for _, s in checked])
    errors = np.abs(predicted / measured - 1)
    alike = np.ptp(predicted) == 0 or np.ptp(measured) == 0  # then there is no order
    tau = 1.0 if alike else float(kendalltau(predicted, measured).statistic)
    worst, middle = float(errors.max()), float(np.median(errors))
    return dataclasses.replace(line, median_error=middle, worst_error=worst, kendall_tau=tau)


class LatencyModel:
    """Seconds of the derived networks of a space, in their final form.

    A network's latency is a line through the sum of the seconds of its pieces: modules without children, and what is
    computed between them, each measured by itself. The line is fitted to the smallest, the largest and random
    networks that are measured end-to-end, and checked on others; where its median error there is above 10 %, every
    latency is measured end-to-end instead. What was measured is kept in a file of the user's cache.

    Args:
        sketches: of the space, at the batch size of the bench.
        bench: measures.
        progress: see `Progress`.
    """

    def __init__(
        self, sketches: Sketches, bench: Measures, progress: Progress = lambda stage, done, total: None
    ) -> None:
        self.sketches, self.bench, self._progress = sketches, bench, progress
        self.machine = bench.machine()
        self._path = cache_file(self.machine)
        self._measured, self._new = load(self._path), Measured()
        self._known: dict[Architecture, float] = {}
        self._calibration: Calibration | None = None
        self._ends: list[Architecture] = []

    def __call__(self, architecture: Architecture) -> float:
        """Seconds of a forward pass: predicted where the table is believed, else measured end-to-end."""
        if architecture not in self._known:
            if self.calibration().trusted:
                self._known[architecture] = self.guess(architecture)
            else:
                self._known[architecture] = self.measure([architecture], _SECONDS)[0].seconds
        return self._known[architecture]

    def guess(self, architecture: Architecture) -> float:
        """Seconds of a forward pass by the table, whether that is believed or not."""
        return self.calibration().predict(self.total(architecture))

    def calibration(self) -> Calibration:
        """How networks follow from pieces; measured where the cache knows none that can be trusted.

        A busy phase of the machine spoils it, so that it is tried twice; what is still not trusted is not kept.
        """
        for attempt in range(0 if self.is_calibrated() else _ATTEMPTS):
            samples = self.samples(_FITTED + _CHECKED)
            self.prepare(samples)
            self._progress("networks", 0, len(samples))
            timings = self.measure(samples, (attempt + 1) * _SECONDS)
            if self.calibrate(samples, timings).trusted:
                break
        assert self._calibration is not None
        return self._calibration

    def calibrate(self, architectures: Sequence[Architecture], timings: Sequence[Timing]) -> Calibration:
        """Takes the line through the first half of some measured networks, checks it on the others, and keeps it."""
        pairs = [(self.total(a), timing.seconds) for a, timing in zip(architectures, timings, strict=True)]
        half = (len(pairs) + 1) // 2
        self._known.clear()
        self._calibration = calibrate(pairs[:half], pairs[half:] or pairs[:half])
        if self._calibration.trusted:
            self._new.spaces[self.key()] = dataclasses.asdict(self._calibration)
        self.save()
        return self._calibration

    def is_calibrated(self) -> bool:
        """Whether nothing has to be measured end-to-end before a latency can be told."""
        if self._calibration is None:
            self._calibration = _read(self._measured.spaces.get(self.key()))
        return self._calibration is not None

    def include(self, architecture: Architecture) -> None:
        """Makes a network part of the fit of a calibration to come: a line is worth little beyond its networks."""
        self._ends.append(architecture)

    def samples(self, count: int) -> list[Architecture]:
        """The smallest, the largest, included and random architectures, in this order; fewer in a space of fewer."""
        space, choices, rng = self.sketches.space, self.sketches.space.choices(self.sketches.shapes), generator(0, 0, 7)
        ends = [space.smallest(choices), space.largest(choices), *self._ends]
        drawn = (space.sample(choices, rng) for _ in range(4 * count))
        return list(dict.fromkeys([*ends, *drawn]))[:count]

    def measure(self, architectures: Sequence[Architecture], seconds: float = 1.0) -> list[Timing]:
        """End-to-end measurements, taken in turns."""
        space, shapes = self.sketches.space, self.sketches.shapes
        networks = [space.build(architecture, shapes) for architecture in architectures]
        return self.bench.networks(networks, seconds, lambda done, total: self._progress("networks", done, total))

    def total(self, architecture: Architecture) -> float:
        """The sum over the pieces of a network, in seconds."""
        self.prepare([architecture])
        return sum(count * self._measured.pieces[text] for text, count in self.sketches(architecture).pieces.items())

    def pieces(self, architecture: Architecture) -> list[tuple[str, int, float]]:
        """Name, number and seconds of one of each piece of a network, those that take most in all first."""
        self.prepare([architecture])
        found = self.sketches(architecture).pieces.items()
        rows = [(_titled(self.sketches.pieces[text]), count, self._measured.pieces[text]) for text, count in found]
        return sorted(rows, key=lambda row: -row[1] * row[2])

    def prepare(self, architectures: Sequence[Architecture]) -> None:
        """Measures what is not known of the pieces of some networks, all together."""
        met = dict.fromkeys(text for architecture in architectures for text in self.sketches(architecture).pieces)
        missing = [text for text in met if text not in self._measured.pieces]
        if not missing:
            return
        self._progress("pieces", 0, len(missing))
        found = dict(zip(missing, self.bench.pieces([self.sketches.pieces[text] for text in missing]), strict=True))
        self._progress("pieces", len(missing), len(missing))
        self._measured.pieces.update(found)
        self._new.pieces.update(found)
        if len(self._new.pieces) >= _SAVED_AFTER:
            self.save()

    def save(self) -> None:
        """Adds what was measured to the file."""
        save(self._path, self.machine, self._new)
        self._new = Measured()

    def key(self) -> str:
        """Names the space with its settings, the shapes, and what its smallest and largest networks run."""
        space, shapes = self.sketches.space, self.sketches.shapes
        choices = space.choices(shapes)
        ends = [sorted(self.sketches(a).pieces.items()) for a in (space.smallest(choices), space.largest(choices))]
        what = json.dumps([plain_plugin(SPACES, space), str(shapes), ends], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()


def _titled(piece: Piece) -> str:
    """The name of a piece with the shape of its first input."""
    shapes = [arg.shape for arg in piece.args if isinstance(arg, Blank)]
    return f"{piece.name} on {'x'.join(map(str, shapes[0]))}" if shapes else piece.name


def _read(data: Mapping[str, Any] | None) -> Calibration | None:
    """A calibration as it was kept; None where it is not whole."""
    if data is None:
        return None
    try:
        fitted, checked = (tuple((float(a), float(b)) for a, b in data[name]) for name in ("fitted", "checked"))
        names = ("intercept", "slope", "median_error", "worst_error", "kendall_tau")
        intercept, slope, middle, worst, tau = (float(data[name]) for name in names)
        return Calibration(intercept, slope, middle, worst, tau, fitted, checked)
    except (LookupError, TypeError, ValueError):
        return None
