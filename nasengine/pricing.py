"""What many architectures cost at once, by name: parameters, multiply-adds, and what is given besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from nasengine import cost
from nasengine.architecture import Architecture, Choice
from nasengine.budget import Cost, CostModel, Limits
from nasengine.errors import ArchitectureError, LimitError, SettingError, UnknownNameError
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
    """The costs `against` of architectures of a space, those of the network in its final form.

    Parameters and multiply-adds come from the space where it counts many at once (a method `costs`), from the model of
    costs where one fits the space, or are counted one by one.

    Raises:
        SettingError: a cost that is neither counted nor given.
    """

    def __init__(self, space: Space, shapes: Shapes, against: Sequence[str], more: Costs | None = None) -> None:
        self.space, self.shapes, self.against, self.more = space, shapes, tuple(against), more
        self._vectorised = getattr(space, "costs", None)
        self.model = None if self._vectorised is not None else _model(space, shapes)
        self._known: dict[Architecture, Cost] = {}
        measured = [name for name in self.against if name not in _COUNTED]
        if measured and more is None:
            raise SettingError(
                f"The cost {measured[0]!r} must be measured, but nothing that measures it is given; name "
                f"{' or '.join(_COUNTED)}, or pass costs."
            )

    def __call__(self, architectures: Sequence[Architecture]) -> dict[str, Floats]:
        """The costs by name, (N,) each."""
        counted = dict(zip(_COUNTED, np.array(self.counted(architectures), np.float64).T, strict=True))
        measured = dict(self.more(architectures)) if self.more is not None else {}
        return {name: np.asarray({**counted, **measured}[name], np.float64) for name in self.against}

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

    def keeps(self, limits: Limits, architecture: Architecture) -> bool:
        """Whether an architecture keeps limits."""
        return not limits or float(limits.excess(self.counted([architecture])[0])) == 0

    def start(self, choices: Mapping[str, Choice], limits: Limits) -> Architecture:
        """An architecture that keeps limits. Raises LimitError where none is found."""
        smallest = self.space.smallest(choices)
        if self.keeps(limits, smallest):
            return smallest
        if self.model is not None:
            return self.model.nearest(limits)
        rng = generator(0, _START)
        drawn = [smallest, *(self.space.sample(choices, rng) for _ in range(_DRAWN))]
        excess = [float(limits.excess(found)) for found in self.counted(drawn)]
        best = int(np.argmin(excess))
        if excess[best] > 0:
            nearest = self.counted([drawn[best]])[0]
            raise LimitError(
                f"The limits must leave an architecture of space {self.space.name!r}, but the nearest one that was "
                f"found has {nearest.parameters:,} parameters and {nearest.multiply_adds:,} multiply-adds; raise a "
                "limit to that."
            )
        return drawn[best]

    def _built(self, architecture: Architecture) -> Cost:
        final = self.space.final()
        with torch.device("meta"):
            parameters = cost.parameters(final.build(architecture, self.shapes))
        return Cost(parameters, cost.multiply_adds(lambda: final.build(architecture, self.shapes), self.shapes))


def _model(space: Space, shapes: Shapes) -> CostModel | None:
    """The model of costs, None where a space has choices of other kinds or no blueprint."""
    try:
        model = CostModel(space.final(), shapes, form=space.form(space.final()))
        model.check()
    except (ArchitectureError, SettingError):
        return None
    return model
