"""What the tests of comparisons share: a tiny one whose searches cost what is said, so that its epochs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nasengine.calibrating import Calibration
from nasengine.compare_plan import ComparePlan, Contender
from tests.nasengine.runs import TINY

COMPARE = (
    *TINY,
    *("search.batch_size=8", "search.device=cpu", "final.channels=2", "final.layers=3"),
    *("train.epochs=1", "train.batch_size=16"),
)
ALGORITHMS = "darts,random:samples=2"
KNOWN = {"darts": Calibration(1.0, 2, 1.0, 1.0), "random:samples=2": Calibration(0.5, 2, 0.5, 2.0)}
"""Of 2 steps an epoch: within 5 seconds 1 epoch and 2."""


def known_cost(patch: pytest.MonkeyPatch) -> list[str]:
    """Every calibration gives what is known; a list of those that were made."""
    made: list[str] = []

    def calibrated(plan: ComparePlan, contender: Contender, workers: int | str) -> Calibration:
        del plan, workers
        made.append(contender.label)
        return KNOWN[contender.label]

    patch.setattr("nasengine.comparing.calibrated", calibrated)
    return made


def tables(path: Path) -> list[dict[str, Any]]:
    """compare.csv without the clocks."""
    import pandas as pd

    table = pd.read_csv(path / "compare.csv")
    kept = table[[name for name in table if "seconds" not in str(name)]]
    return [{str(name): value for name, value in row.items()} for row in kept.to_dict("records")]
