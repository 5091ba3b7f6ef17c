"""What the steps of an epoch tell: their means, and whether all of it is finite."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

SECONDS: Final = 0.2
"""Between two looks at the numbers of steps that run on a GPU."""


class NotFinite(NamedTuple):
    """A number of a step."""

    step: int
    name: str
    number: float


class Meter:
    """Sums of what steps tell. To read a number of a GPU is to wait for all of its work: that happens now and then.

    Attributes:
        sums: by name, over the steps since `clear`; 0-dim tensors.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._unread: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._looked = time.perf_counter()

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """The numbers of a step, 0-dim tensors on one device."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        numbers = torch.stack([value.detach().to(torch.float32) for value in metrics.values()])
        self._unread.append((step, tuple(metrics), numbers))

    def is_due(self) -> bool:
        """Whether to look at what was added: at once where that costs nothing, else after a while."""
        in_main_memory = all(numbers.is_cpu for _, _, numbers in self._unread)
        return in_main_memory or time.perf_counter() - self._looked >= SECONDS

    def look(self) -> NotFinite | None:
        """The first number that is not finite among those that were added since the last look."""
        unread, self._unread = self._unread, []
        if not unread:
            return None
        numbers = iter(torch.cat([row for _, _, row in unread]).tolist())
        self._looked = time.perf_counter()
        named = [(step, name) for step, names, _ in unread for name in names]
        found = (NotFinite(*place, number) for place, number in zip(named, numbers, strict=True))
        return next((one for one in found if not math.isfinite(one.number)), None)

    def means(self, steps: int) -> dict[str, float]:
        """The sums over a number of steps."""
        totals = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        return {name: total / steps for name, total in zip(self.sums, totals, strict=True)}

    def clear(self, sums: Mapping[str, Tensor] | None = None) -> None:
        """Begins anew, from the sums of a checkpoint if there are some."""
        self.sums, self._unread = dict(sums or {}), []
