from __future__ import annotations

import numpy as np
import pytest

from nasengine.encoding import Graphs
from predictors.ridge import RidgeRegression


def counted(rows: list[list[int]]) -> Graphs:
    """Graphs without edges whose nodes have these operations, and no numbers."""
    operations = np.array([row + [-1] * (4 - len(row)) for row in rows], np.int16)
    return Graphs(operations, np.zeros((len(rows), 4, 4), bool), np.zeros((len(rows), 0), np.float32), ("a", "b"))


def test_a_linear_function_is_found() -> None:
    rows = [[0] * a + [1] * b for a in range(3) for b in range(3) if 0 < a + b < 5]
    graphs = counted(rows)
    scores = np.array([row.count(0) - 2.0 * row.count(1) for row in rows])
    predictor = RidgeRegression(space="nasbench201")
    predictor._fit(graphs, scores, graphs)
    means, deviations = predictor._predict(graphs, True)
    np.testing.assert_allclose(means, scores, atol=0.1)
    assert np.ptp(deviations) == 0 and 0 < deviations[0] < 0.5


def test_the_deviation_is_the_error_of_the_labels_left_out() -> None:
    rng = np.random.default_rng(0)
    graphs = counted([[0] * int(rng.integers(1, 5)) for _ in range(400)])
    predictor = RidgeRegression(space="nasbench201")
    predictor._fit(graphs, rng.normal(size=400), graphs)
    means, deviations = predictor._predict(graphs, True)
    assert np.abs(means).max() < 0.3 and deviations[0] == pytest.approx(1.0, abs=0.15)
