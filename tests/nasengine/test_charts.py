from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nasengine.charts import draw_ranking, figure
from nasengine.heldout import Evaluation, evaluate


@pytest.fixture
def evaluation() -> Evaluation:
    scores = np.random.default_rng(0).normal(size=30)
    found = evaluate(scores, lambda known, held: (scores[held] + 1 / len(known), np.ones(len(held))), 2, 0)
    assert found is not None
    return found


def test_three_panels_say_what_they_show(evaluation: Evaluation) -> None:
    picture = figure(np.linspace(0, 1, 500), np.linspace(0, 1, 30), evaluation, "accuracy_$x_")
    assert [axes.get_title() for axes in picture.axes] == [
        "labels held out: tau 1.000 ± 0.000",
        "learning curve",
        "all candidates",
    ]
    guesses, curve, spread = picture.axes
    assert guesses.get_xlabel() == "true accuracy_$x_" and curve.get_xlabel() == "labels"
    sizes = sorted({part.labels for part in evaluation.curve})
    assert [text.get_text() for text in curve.get_xticklabels()] == list(map(str, sizes))
    legend = spread.get_legend()
    assert legend is not None and [t.get_text() for t in legend.get_texts()] == ["500 guessed", "30 labels"]


@pytest.mark.parametrize("scores", [np.linspace(0, 1, 50), np.ones(3)])
def test_without_a_judgement_the_spread_is_left(scores: np.ndarray) -> None:
    assert [axes.get_title() for axes in figure(scores, np.ones(2), None).axes] == ["all candidates"]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_same_numbers_same_bytes(evaluation: Evaluation, suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.{suffix}" for number in range(2)]
    for path in paths:
        draw_ranking(np.linspace(0, 1, 50), np.linspace(0, 1, 30), evaluation, path, "a_$b")
    one, other = (path.read_bytes() for path in paths)
    assert one == other and len(one) > 5000
    assert suffix == "png" or b"a_$b" in one
