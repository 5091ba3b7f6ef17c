from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nasengine.comparison_chart import draw_comparison, figure


def made(seeds: int, measure: str = "accuracy") -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    labels = ["darts", "darts:order=second", "random"]
    table = pd.DataFrame(
        [
            {"algorithm": label, "seed": seed, f"test_{measure}": rng.random()}
            for label in labels
            for seed in range(seeds)
        ]
    )
    rows = [
        {"algorithm": label, "seed": seed, "at": at, "epoch": epoch, "seconds": 3.0 * place + seed}
        for label in labels
        for seed in range(seeds)
        for place, (at, epoch) in enumerate([("epoch", 1), ("epoch", 2), ("end", 2)], start=1)
    ]
    curves = pd.DataFrame(rows)
    for part in ("supernet", "derived"):
        curves[f"{part}_{measure}"] = rng.random(len(curves))
    return table, curves


@pytest.mark.parametrize("seeds", [1, 3])
def test_three_panels_have_every_algorithm_in_one_colour(seeds: int) -> None:
    table, curves = made(seeds)
    table.loc[0, "test_accuracy"] = np.nan  # one that diverged
    supernet, derived, test = figure(table, curves, "accuracy", 12.0).axes
    assert [axes.get_title() for axes in (supernet, derived, test)][2] == f"test, n = {seeds}"
    legend = supernet.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["darts", "darts:order=second", "random"]
    rows = curves[(curves["algorithm"] == "random") & (curves["at"] == "epoch")]
    line = next(line for line in derived.lines if line.get_label() == "random")
    assert np.allclose(np.asarray(line.get_ydata()), 100 * rows.groupby("epoch")["derived_accuracy"].mean())
    assert np.allclose(np.asarray(line.get_xdata()), rows.groupby("epoch")["seconds"].mean())
    assert [text.get_text() for text in test.get_yticklabels()] == ["darts", "darts:order=second", "random"]
    dots = [line for line in test.lines if line.get_marker() == "o"]
    assert sum(len(np.asarray(line.get_xdata())) for line in dots) == 3 * seeds - 1
    assert {line.get_color() for line in dots} <= {line.get_color() for line in supernet.lines}
    assert derived.get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_same_numbers_same_bytes(suffix: str, tmp_path: Path) -> None:
    table, curves = made(2, "negative_mse")
    for name in ("one", "other"):
        draw_comparison(table, curves, "negative_mse", 12.0, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"other.{suffix}").read_bytes()
    assert figure(table, curves, "negative_mse", 12.0).axes[0].get_ylabel() == "negative mse"
