from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nasengine.architecture import Architecture
from nasengine.errors import DataError
from nasengine.seeding import generator
from nasengine.testing import known_scores
from predictors import gaussian_process as module
from predictors.gaussian_process import GaussianProcess
from search_spaces.nasbench201 import NASBench201

SPACE = NASBench201()


def labelled(count: int) -> tuple[list[Architecture], NDArray[np.float64]]:
    choices, rng = SPACE.choices(), generator(0)
    found = list(dict.fromkeys(SPACE.sample(choices, rng) for _ in range(count)))
    predictor = GaussianProcess(space=SPACE)
    return found, known_scores(SPACE.encode(found, predictor.shapes))


def test_deviations_shrink_at_labels() -> None:
    architectures, scores = labelled(150)
    predictor = GaussianProcess(space=SPACE).fit(architectures[:60], scores[:60])
    at, away = (predictor.predict(part, return_std=True) for part in (architectures[:60], architectures[60:]))
    assert np.abs(at[0] - scores[:60]).mean() < 0.3 * np.abs(away[0] - scores[60:]).mean()
    process = predictor._process
    inputs = predictor._features(SPACE.encode(architectures, predictor.shapes)).astype(np.float64)
    deviations = process.predict(inputs, return_std=True)[1]
    assert deviations[:60].max() < deviations[60:].mean()


def test_weights_are_learned_from_some_labels_and_all_are_used() -> None:
    architectures, scores = labelled(120)
    few = GaussianProcess(space=SPACE, fitted_on=20).fit(architectures, scores)
    assert len(few._process.X_train_) == len(architectures)
    other = GaussianProcess(space=SPACE, fitted_on=20, seed=1).fit(architectures, scores)
    assert not np.array_equal(few._process.kernel_.theta, other._process.kernel_.theta)
    every = [GaussianProcess(space=SPACE, seed=seed).fit(architectures, scores) for seed in (0, 1)]
    np.testing.assert_allclose(*(fitted._process.kernel_.theta for fitted in every), atol=0.1)


def test_more_labels_than_a_matrix_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures, scores = labelled(30)
    monkeypatch.setattr(module, "_MOST", 20)
    with pytest.raises(DataError, match=r"must have at most 20 labels, .* but got 30; give fewer, or take"):
        GaussianProcess(space=SPACE).fit(architectures, scores)
