"""The picture of a comparison: curves against seconds with their spread over seeds, and the scores on the test set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nasengine.charts import COLOURS, GREY, INK, write_picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"supernet": "supernet, validation", "derived": "derived, validation with shared weights"}


def draw_comparison(table: pd.DataFrame, curves: pd.DataFrame, measure: str, budget: float, path: Path) -> None:
    """Writes the picture, .svg or .png by the suffix of `path`; same numbers, same bytes.

    Args:
        table, curves: as `nasengine.comparison` makes them.
        measure: of the task, by name; one that ends in "accuracy" is shown in per cent.
        budget: seconds of a search.
        path: of the picture.
    """
    write_picture(lambda: figure(table, curves, measure, budget), path)


def figure(table: pd.DataFrame, curves: pd.DataFrame, measure: str, budget: float) -> Figure:
    """The picture as a matplotlib figure that belongs to no global state: three panels."""
    from matplotlib.figure import Figure as Canvas

    labels = list(dict.fromkeys(table["algorithm"]))
    picture = Canvas(figsize=(12.6, 3.0 + 0.2 * max(3, len(labels))), facecolor="white", layout="constrained")
    panels = list(picture.subplots(1, 3))
    for axes, part in zip(panels, _TITLES, strict=False):
        _draw_curves(axes, curves, labels, f"{part}_{measure}", budget)
        axes.set(title=_TITLES[part], ylabel=_unit(measure))
    _draw_scores(panels[2], table, labels, measure)
    panels[0].legend(frameon=False, loc="best")
    return picture


def _draw_curves(axes: Axes, curves: pd.DataFrame, labels: list[str], column: str, budget: float) -> None:
    """Means over seeds, in a band of a deviation to either side; what was found at the end as a larger dot."""
    scale = _scale(column)
    for place, label in enumerate(labels):
        rows, colour = curves[curves["algorithm"] == label], COLOURS[place % len(COLOURS)]
        epochs, ends = rows[rows["at"] == "epoch"].groupby("epoch"), rows[rows["at"] == "end"]
        seconds, means = epochs["seconds"].mean(), scale * epochs[column].mean()
        spread = scale * epochs[column].std().fillna(0.0)
        axes.plot(seconds, means, ".-", color=colour, linewidth=1.2, ms=3, label=label)
        axes.fill_between(seconds, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
        if len(ends):
            last = ends["seconds"].mean(), scale * ends[column].mean()
            axes.plot([seconds.iloc[-1], last[0]], [means.iloc[-1], last[1]], ":", color=colour, linewidth=1.0)
            axes.plot(*last, "o", color=colour, ms=6, mec="white")
    axes.axvline(budget, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of search")


def _draw_scores(axes: Axes, table: pd.DataFrame, labels: list[str], measure: str) -> None:
    """Every seed as a dot, the mean as a line with a deviation to either side."""
    column = f"test_{measure}"
    for place, label in enumerate(labels):
        scores = _scale(column) * table[table["algorithm"] == label][column].dropna().to_numpy(dtype=float)
        if not len(scores):
            continue
        spread = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
        axes.errorbar(scores.mean(), place + 0.15, xerr=spread, fmt="|", color=INK, ms=10, capsize=3, linewidth=1.0)
        heights = place - 0.12 + np.linspace(-0.08, 0.08, len(scores)) * (len(scores) > 1)  # equal scores side by side
        axes.plot(scores, heights, "o", color=COLOURS[place % len(COLOURS)], ms=5, alpha=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set(xlabel=_unit(measure), title=f"test, n = {table['seed'].nunique()}")


def _unit(measure: str) -> str:
    return f"{measure.replace('_', ' ')}{' (%)' if measure.endswith('accuracy') else ''}"


def _scale(column: str) -> float:
    """What values are multiplied with to be shown."""
    return 100.0 if column.endswith("accuracy") else 1.0
