"""Which subnets of a supernet may train when: all at once, or opened step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nasengine.architecture import Architecture
from nasengine.elastic import ElasticDepth
from nasengine.supernet import Supernet
from nasengine.units import feature_sizes

_FIRST = 25 / 145
"""Share of a stage before its last option opens: 25 of 145 epochs in once-for-all (arXiv:1908.09791, appendix)."""


class Stage(NamedTuple):
    """What may be sampled.

    Attributes:
        open: by label, how many of the options may be taken, counted from the largest.
        subnets: networks a step.
        sortings: how often units have to be sorted before it.
    """

    open: Mapping[str, int]
    subnets: int
    sortings: int

    def random(self, supernet: Supernet, rng: torch.Generator) -> Architecture:
        """Any open architecture, every open option alike."""
        return self._drawn(supernet, {label: self._noise(c.options, rng) for label, c in supernet.choices.items()})

    def smallest(self, supernet: Supernet, rng: torch.Generator) -> Architecture:
        """All sizes at their smallest open option; operations, which have no order, at random."""
        rows = {
            label: -torch.arange(float(len(c.options))) if c.ordinal else self._noise(c.options, rng)
            for label, c in supernet.choices.items()
        }
        return self._drawn(supernet, rows)

    def _drawn(self, supernet: Supernet, rows: Mapping[str, Tensor]) -> Architecture:
        for label, row in rows.items():
            row[: len(row) - self.open[label]] = -torch.inf
        return supernet.space.derive(supernet.choices, rows)

    @staticmethod
    def _noise(options: tuple[str, ...], rng: torch.Generator) -> Tensor:
        return torch.rand(len(options), generator=rng)


def stage_at(supernet: Supernet, shrinking: Literal["delayed", "progressive"], progress: float, subnets: int) -> Stage:
    """The stage at a share of the steps after the warm-up.

    Delayed: everything is open. Progressive (arXiv:1908.09791, section 3.3): in three equal parts kernels, operations
    and resolutions with 1 subnet a step, then depths with 2, then widths with 4; depths and widths open one option at a
    time, from the largest on, all of a kind together.
    """
    options = {label: len(choice.options) for label, choice in supernet.choices.items()}
    if shrinking == "delayed":
        return Stage(options, subnets, 1)
    depths = {m.size.label for m in supernet.modules() if isinstance(m, ElasticDepth)}
    widths = {size.label for size in feature_sizes(supernet.network)}
    begins = {label: 2 if label in widths else 1 if label in depths else 0 for label in options}
    part = min(2, int(3 * progress))
    most = max((options[label] for label, first in begins.items() if first == part), default=1)
    now = _opened(most, 3 * progress - part) if part else most
    opened = {
        label: min(count, now) if begins[label] == part else count if begins[label] < part else 1
        for label, count in options.items()
    }
    return Stage(opened, (1, 2, 4)[part], now - 1 if part == 2 else 0)


def _opened(options: int, within: float) -> int:
    """Open options at a share of their stage: two at its start, all after its first part."""
    if within >= _FIRST or options <= 2:
        return options
    return 2 + int((options - 2) * within / _FIRST)
