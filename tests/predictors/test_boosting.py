from __future__ import annotations

import numpy as np

from nasengine.encoding import Graphs
from predictors.boosting import Boosting

RNG = np.random.default_rng(0)
OPERATIONS = RNG.integers(0, 4, (80, 5)).astype(np.int16)
GRAPHS = Graphs(OPERATIONS, np.zeros((80, 5, 5), bool), np.zeros((80, 0), np.float32), ("a", "b", "c", "d"))
TARGETS = np.where((OPERATIONS == 0).sum(axis=1) >= 2, 1.0, -1.0) + 0.1 * RNG.normal(size=80)


def test_a_step_is_found() -> None:
    predictor = Boosting(space="nasbench201", trees=60)
    predictor._fit(GRAPHS, TARGETS, GRAPHS)
    means, deviations = predictor._predict(GRAPHS, True)
    assert np.array_equal(np.sign(means), np.sign(TARGETS)) and np.abs(means - TARGETS).mean() < 0.3
    assert (deviations > 0).all()


def test_the_uncertainty_is_that_of_labels_not_seen() -> None:
    known, rest = slice(0, 60), slice(60, 80)
    targets = TARGETS + RNG.normal(size=80)
    predictor = Boosting(space="nasbench201", trees=60)
    predictor._fit(GRAPHS.take(known), targets[known], GRAPHS)
    means, deviations = predictor._predict(GRAPHS.take(rest), True)
    missed = np.abs(means - targets[rest])
    assert 0.4 < (missed < deviations).mean() < 0.95 and (missed < 2 * deviations).mean() > 0.8
    few = Boosting(space="nasbench201", trees=2)
    few._fit(GRAPHS.take(slice(0, 4)), TARGETS[:4], GRAPHS)
    assert (few._predict(GRAPHS, True)[1] >= 1.0).all()


def test_members_and_seeds_differ_by_the_features_that_they_see() -> None:
    found = []
    for seed, members in ((0, 1), (1, 1), (0, 2)):
        predictor = Boosting(space="nasbench201", trees=60, seed=seed, members=members)
        predictor._fit(GRAPHS, TARGETS, GRAPHS)
        found.append(predictor._predict(GRAPHS, True))
    assert not np.array_equal(found[0][0], found[1][0])
    assert np.ptp(found[0][1]) == 0 and np.ptp(found[2][1]) > 0
