"""What many architectures cost at once, by name: parameters, multiply-adds, seconds, bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from nasengine import cost
from nasengine.architecture import Architecture, Choice
from nasengine.budget import Cost, CostModel, FullCost, Limits
from nasengine.config import LatencySettings
from nasengine.descent import in_words
from nasengine.errors import ArchitectureError, LimitError, SettingError, UnknownNameError
from nasengine.footprint import Footprint
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.task import Shapes

Floats = NDArray[np.float64]

Costs = Callable[[Sequence[Architecture]], Mapping[str, NDArray[Any]]]
"""Gives named costs (N,) of N architectures: latency in seconds, memory in bytes."""

COSTS: Final = ("parameters", "multiply_adds", "latency", "memory")
_COUNTED: Final = Cost._fields
_START, _DRAWN = 14, 500  # stream of random numbers; architectures among which one within the limits is looked for


def chosen_costs(text: str) -> tuple[str, ...]:
    """The names in a text with commas between them. Raises UnknownNameError, and SettingError where there is none."""
    names = tuple(dict.fromkeys(name.strip().replace("-", "_") for name in text.split(",") if name.strip()))
    for name in names:
        if name not in COSTS:
            raise UnknownNameError("cost", name, COSTS)
    if not names:
        raise SettingError(f"A front must be against one cost or more, but none is named; give {', '.join(COSTS)}.")
    return names


class Prices:
    """The costs `against` of architectures of a space, as it is set, and the limits on them.

    Parameters and multiply-adds come from the space where it counts many at once (a method `costs`), from the model of
    costs where one fits the space, or are counted one by one. Seconds and bytes are those of the footprint, and are
    asked for only where they are weighed or limited.

    Args:
        space: in its final form, with the settings of the network that is to be trained.
        shapes: of the data.
        against: names of costs.
        limits: what all architectures have to keep.
        footprint: tells seconds and bytes of networks of that space; of this machine by default.
        form: what the final form changes, for messages.
        more: gives costs in place of what is told here.

    Attributes:
        timed: whether the footprint was asked for seconds.
    """

    def __init__(
        self,
        space: Space,
        shapes: Shapes,
        against: Sequence[str],
        limits: Limits = Limits(),  # noqa: B008
        footprint: Footprint | None = None,
        form: str = "",
        more: Costs | None = None,
    ) -> None:
        self.space, self.shapes, self.against, self.limits, self.more = space, shapes, tuple(against), limits, more
        self.footprint = footprint or Footprint(space, shapes, LatencySettings())
        self._vectorised = getattr(space, "costs", None)
        self.model = None if self._vectorised is not None else _model(space, shapes, self.footprint, form)
        self._known: dict[Architecture, Cost] = {}
        self.timed = False

    def __call__(self, architectures: Sequence[Architecture]) -> dict[str, Floats]:
        """The costs by name, (N,) each."""
        found = self._found(self.against, architectures)
        return {name: found[name] for name in self.against}

    def _found(self, names: Sequence[str], architectures: Sequence[Architecture]) -> dict[str, Floats]:
        """Parameters, multiply-adds, and the costs of these names."""
        given = dict(self.more(architectures)) if self.more is not None and not {*names} <= {*_COUNTED} else {}
        counted = np.array(self.counted(architectures), np.float64).reshape(-1, 2).T
        found: dict[str, Any] = {**dict(zip(_COUNTED, counted, strict=True)), **given}
        if "latency" in names and "latency" not in found:
            self.timed = True
            self.footprint.prepare(architectures)
            found["latency"] = [self.footprint.latency(architecture) for architecture in architectures]
        if "memory" in names and "memory" not in found:
            found["memory"] = [self.footprint.memory(architecture) for architecture in architectures]
        return {name: np.asarray(values, np.float64) for name, values in found.items()}

    def counted(self, architectures: Sequence[Architecture]) -> list[Cost]:
        """Parameters and multiply-adds of each; those of one that was asked for before are not counted again."""
        new = [architecture for architecture in dict.fromkeys(architectures) if architecture not in self._known]
        if new and self._vectorised is not None:
            columns = self._vectorised(new, self.shapes)
            found = [Cost(int(p), int(m)) for p, m in zip(*columns, strict=True)]
        else:
            found = [self.model.of(a) if self.model is not None else self._built(a) for a in new]
        self._known.update(zip(new, found, strict=True))
        return [self._known[architecture] for architecture in architectures]

    def full(self, architectures: Sequence[Architecture]) -> list[FullCost]:
        """The costs of each, with the seconds and bytes that are limited, 0 for those that are not."""
        limited = [name for name, limit in zip(COSTS, self.limits.all(), strict=True) if limit]
        found = self._found(limited, architectures)
        none = np.zeros(len(architectures))
        columns = zip(*(found.get(name, none).tolist() for name in COSTS), strict=True)
        return [FullCost(int(p), int(m), latency, int(memory)) for p, m, latency, memory in columns]

    def keeps(self, architecture: Architecture) -> bool:
        """Whether an architecture keeps the limits."""
        return not self.limits or float(self.limits.excess(self.full([architecture])[0])) == 0

    def start(self, choices: Mapping[str, Choice]) -> Architecture:
        """An architecture that keeps the limits. Raises LimitError where none is found."""
        smallest = self.space.smallest(choices)
        if not self.limits:
            return smallest
        if self.model is not None and (self.more is None or not (self.limits.latency or self.limits.memory)):
            return self.model.nearest(self.limits)
        if self.keeps(smallest):
            return smallest
        rng = generator(0, _START)
        drawn = [smallest, *(self.space.sample(choices, rng) for _ in range(_DRAWN))]
        full = self.full(drawn)
        excess = [float(self.limits.excess(found)) for found in full]
        best = int(np.argmin(excess))
        if excess[best] > 0:
            raise LimitError(
                f"The limits must leave an architecture of space {self.space.name!r}, but the nearest one that was "
                f"found has {in_words(self.limits, full[best])}; raise a limit to that."
            )
        return drawn[best]

    def _built(self, architecture: Architecture) -> Cost:
        with torch.device("meta"):
            parameters = cost.parameters(self.space.build(architecture, self.shapes))
        return Cost(parameters, cost.multiply_adds(lambda: self.space.build(architecture, self.shapes), self.shapes))


def _model(space: Space, shapes: Shapes, footprint: Footprint, form: str) -> CostModel | None:
    """The model of costs, None where a space has choices of other kinds or no blueprint."""
    try:
        model = CostModel(space, shapes, footprint, form)
        model.check()
    except (ArchitectureError, SettingError):
        return None
    return model
