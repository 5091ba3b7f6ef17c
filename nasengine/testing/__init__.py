"""Contract tests and toys for plug-ins: call `check_space`, `check_algorithm`, `check_predictor` in yours.

>>> from nasengine.algorithms.darts import DARTS
>>> check_algorithm(DARTS())

A check that fails raises AssertionError with a sentence that says which law is broken.
"""

from nasengine.testing.algorithms import STEPS, check_algorithm, check_settings, run_steps
from nasengine.testing.cost import check_cost
from nasengine.testing.elastic import (
    check_gates,
    check_idle,
    check_order,
    check_second_order,
    check_slices,
    check_sorting,
)
from nasengine.testing.predictors import check_predictor, known_scores
from nasengine.testing.sized import SizedSpace, sized
from nasengine.testing.spaces import (
    check_hard_cost,
    check_networks,
    check_reentrancy,
    check_relaxation,
    check_sharing,
    check_space,
    check_text,
)
from nasengine.testing.toys import SmoothSpace, Solvable, SolvableSpace, place, smooth, solvable, solvable_loss

__all__ = [
    "STEPS",
    "SizedSpace",
    "SmoothSpace",
    "Solvable",
    "SolvableSpace",
    "check_algorithm",
    "check_cost",
    "check_gates",
    "check_hard_cost",
    "check_idle",
    "check_networks",
    "check_order",
    "check_predictor",
    "check_reentrancy",
    "check_relaxation",
    "check_second_order",
    "check_settings",
    "check_sharing",
    "check_slices",
    "check_sorting",
    "check_space",
    "check_text",
    "known_scores",
    "place",
    "run_steps",
    "sized",
    "smooth",
    "solvable",
    "solvable_loss",
]
