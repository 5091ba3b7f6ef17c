"""The laws of predictors, for every registered one: at the settings below, at its defaults if it is not among them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasengine.config import resolve_space
from nasengine.predictor import PREDICTORS, Predictor
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.testing import check_predictor, known_scores
from search_spaces._nasbench101_cells import enumerate_cells
from search_spaces._nasbench101_sequence import CellSequence
from search_spaces.nasbench101 import NASBench101
from search_spaces.nasbench201 import NASBench201
from tests.search_spaces.cells101 import other_form, random_cells

SMALL: dict[str, dict[str, Any]] = {
    "boosting": {"trees": 25, "members": 2},
    "ensemble": {"trees": 20},
    "assessor": {"steps": 25, "members": 2, "hidden": 32, "embedding": 16, "anchors": 60},
}
SHAPES = Shapes((3, 32, 32), 10)
IMAGES = f"{Path(__file__).parents[2] / 'examples/images.py'}:SmallCNN"


def small(name: str, space: Space | str) -> Predictor:
    return PREDICTORS[name](space=space, shapes=SHAPES, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_laws_on_nasbench101(name: str) -> None:
    assert PREDICTORS[name].name == name
    space, rng = NASBench101(), random.Random(0)
    pairs = [(space.architecture(cell), other_form(cell, rng)) for cell in random_cells(0, 20)]
    assert all(len(space.encode(pair, SHAPES).unique()[0]) == 1 for pair in pairs)
    check_predictor(small(name, space), pairs=pairs)


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_laws_on_nasbench201(name: str) -> None:
    space = NASBench201()
    texts = [
        ("|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",) * 2,
        (
            "|nor_conv_1x1~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
            "|none~0|+|avg_pool_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|none~1|none~2|",
        ),
        (
            "|nor_conv_1x1~0|+|avg_pool_3x3~0|none~1|+|none~0|skip_connect~1|nor_conv_3x3~2|",
            "|avg_pool_3x3~0|+|nor_conv_1x1~0|none~1|+|none~0|nor_conv_3x3~1|skip_connect~2|",
        ),
    ]
    check_predictor(small(name, space), pairs=[(space.read(one), space.read(other)) for one, other in texts])


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_laws_on_a_space_of_ones_own(name: str) -> None:
    check_predictor(PREDICTORS[name](space="darts", **SMALL.get(name, {})), space=IMAGES, shapes=Shapes((1, 8, 8), 10))


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_a_sequence_that_makes_its_architectures_late_is_like_a_list(name: str) -> None:
    cells = CellSequence(enumerate_cells(5))
    rows = np.random.default_rng(0).permutation(len(cells))
    known, rest = cells[rows[:40]], cells[rows[40:240]]
    scores = known_scores(NASBench101().encode(known, SHAPES))
    late = small(name, "nasbench101").fit(known, scores, cells[rows[200:]])
    early = small(name, "nasbench101").fit(list(known), scores, list(cells[rows[200:]]))
    guesses = late.predict(rest, return_std=True)
    for one, other in zip(guesses, early.predict(list(rest), return_std=True), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("name", PREDICTORS.names())
def test_few_labels_duplicates_and_outliers(name: str, count: int) -> None:
    space = resolve_space("nasbench201", {}, {})
    choices, rng = space.choices(SHAPES), generator(0)
    known = [space.sample(choices, rng) for _ in range(count)]
    for scores in (np.arange(count) ** 9.0 * 1e9, np.r_[0.0, np.ones(count - 1)] * 1e-9):
        fitted = small(name, space).fit(known * 2, np.tile(scores, 2))
        means, deviations = fitted.predict(known, return_std=True)
        assert np.isfinite(means).all() and np.isfinite(deviations).all() and (deviations >= 0).all()


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_two_texts_of_one_network_with_two_scores(name: str) -> None:
    space = NASBench201()
    one, other = map(
        space.read,
        ["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"],
    )
    assert len(space.encode([one, other], SHAPES).unique()[0]) == 1
    fitted = small(name, space).fit([one, other], [1.0, 2.0])
    found = fitted.predict([one, other])
    assert found[0] == found[1] and 1.0 <= found[0] <= 2.0


def test_the_table_names_predictors_that_there_are() -> None:
    assert set(SMALL) <= set(PREDICTORS.names())
