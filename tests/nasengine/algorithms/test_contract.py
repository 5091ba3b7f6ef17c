"""The laws of algorithms, for every registered one and for the variants of those that have some."""

from typing import Any

import pytest

from nasengine.algorithm import Algorithm
from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.rarts import RARTS
from nasengine.registry import ALGORITHMS
from nasengine.testing import check_algorithm


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_registered(name: str) -> None:
    kind: type[Algorithm[Any]] = ALGORITHMS[name]
    assert kind.name == name
    check_algorithm(kind())


@pytest.mark.parametrize(
    "algorithm",
    [
        DARTS(order="second"),
        DARTS(order="exact"),
        DARTS(relaxation="identity"),
        RARTS(sweep="stale"),
        RARTS(lam=0.5, beta=0.0),
    ],
    ids=repr,
)
def test_variants(algorithm: Algorithm[Any]) -> None:
    check_algorithm(algorithm)
