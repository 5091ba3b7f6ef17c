"""Pictures of a ranking (guessed against true scores, learning curve, spread of guesses) and of a Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nasengine.heldout import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's, as of the cells
INK, GREY = "#1F2933", "#9AA5B1"
_MOST_POINTS = 160
_MOST_LABELS = 24
_UNITS = {"latency": "s", "memory": "B"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nasengine",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "font.size": 9.0,
    "text.parse_math": False,
}


def draw_ranking(scores: Floats, known: Floats, evaluation: Evaluation | None, path: Path, name: str = "score") -> None:
    """Writes the picture, .svg or .png by the suffix of `path`; same numbers, same bytes.

    Args:
        scores: (N,) guesses of all candidates; `known` (M,) true scores of the labels.
        evaluation: what was measured on labels that were held out; without it only the spread is drawn.
        path: of the picture.
        name: what the scores are.
    """
    write_picture(lambda: figure(scores, known, evaluation, name), path)


def write_picture(make: Callable[[], Figure], path: Path) -> None:
    """Writes a figure in the looks of this project, .svg or .png by the suffix of `path`; same numbers, same bytes."""
    from matplotlib import style

    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with style.context(["default", _STYLE]):
        make().savefig(path, format=kind, dpi=200, metadata=metadata)


def figure(scores: Floats, known: Floats, evaluation: Evaluation | None, name: str = "score") -> Figure:
    """The picture as a matplotlib figure that belongs to no global state: three panels, or one."""
    from matplotlib.figure import Figure as Canvas

    count = 3 if evaluation is not None else 1
    picture = Canvas(figsize=(4.2 * count, 3.6), facecolor="white", layout="constrained")
    panels = list(np.atleast_1d(picture.subplots(1, count)))
    if evaluation is not None:
        _draw_guesses(panels[0], evaluation, name)
        _draw_curve(panels[1], evaluation)
    _draw_spread(panels[-1], scores, known, name)
    return picture


def _draw_guesses(axes: Axes, evaluation: Evaluation, name: str) -> None:
    each = max(1, _MOST_POINTS // len(evaluation.parts))
    for part, colour in zip(evaluation.parts, COLOURS * len(evaluation.parts), strict=False):
        x, y, error = part.truth[:each], part.scores[:each], part.deviations[:each]
        axes.errorbar(x, y, error, fmt="o", ms=3, color=colour, ecolor=colour, elinewidth=0.5, alpha=0.6)
    shown = np.concatenate([part.truth[:each] for part in evaluation.parts])
    ends = [shown.min(), shown.max()]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle="--", zorder=0)
    tau, spread = evaluation.summary()["kendall_tau"]
    around = f" ± {spread:.3f}" if np.isfinite(spread) else ""
    axes.set(xlabel=f"true {name}", ylabel=f"guessed {name}", title=f"labels held out: tau {tau:.3f}{around}")


def _draw_curve(axes: Axes, evaluation: Evaluation) -> None:
    sizes = sorted({part.labels for part in evaluation.curve})
    found = [np.array([p.measures["kendall_tau"] for p in evaluation.curve if p.labels == size]) for size in sizes]
    means, spreads = [taus.mean() for taus in found], [taus.std(ddof=1) if len(taus) > 1 else 0.0 for taus in found]
    for part in evaluation.curve:
        axes.plot(part.labels, part.measures["kendall_tau"], "o", ms=3, color=GREY)
    axes.errorbar(sizes, means, spreads, fmt="o-", ms=4, color=COLOURS[0], linewidth=1.2, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="labels", ylabel="Kendall tau", title="learning curve")


def _draw_spread(axes: Axes, scores: Floats, known: Floats, name: str) -> None:
    low, high = min(scores.min(), known.min()), max(scores.max(), known.max())
    bins = np.linspace(low, high, 61) if high > low else np.array([low - 0.5, low + 0.5])
    for values, label, colour in ((scores, "guessed", COLOURS[0]), (known, "labels", COLOURS[1])):
        heights = np.histogram(values, bins)[0] / len(values)
        axes.stairs(heights, bins, color=colour, label=f"{len(values):,} {label}", linewidth=1.2)
    axes.legend(frameon=False, loc="upper left")
    axes.set(xlabel=name, ylabel="share", title="all candidates")


def draw_front(values: Floats, front: Sequence[int], costs: Sequence[str], path: Path) -> None:
    """Writes the picture of a Pareto front, a panel for each cost; same numbers, same bytes.

    Args:
        values: (N, 1 + costs) scores, higher is better, then costs of all that was evaluated.
        front: the rows of the front, in the order of their numbers from 1.
        costs: names of the costs.
        path: of the picture, .svg or .png.
    """
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    with style.context(["default", _STYLE]):
        picture = Canvas(figsize=(5.2 * len(costs), 4.0), facecolor="white", layout="constrained")
        panels = np.atleast_1d(picture.subplots(1, len(costs)))
        for column, (axes, name) in enumerate(zip(panels, costs, strict=True), start=1):
            _draw_front(axes, values[:, column], values[:, 0], np.asarray(front), name.replace("_", "-"))
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        picture.savefig(path, format=kind, dpi=200, metadata=metadata)


def _draw_front(axes: Axes, cost: Floats, score: Floats, front: NDArray[np.intp], name: str) -> None:
    """The cloud is cut where it is worse than the front by twice the height of it."""
    from matplotlib.ticker import EngFormatter

    unit = _UNITS.get(name, "")
    separator, rest = " " if unit else "", np.setdiff1d(np.arange(len(cost)), front)
    axes.scatter(cost[rest], score[rest], s=6, color=GREY, alpha=0.35, linewidths=0, label="evaluated", rasterized=True)
    order = front[np.lexsort((-score[front], cost[front]))]
    best = np.maximum.accumulate(score[order])
    edge = order[np.concatenate([[True], best[1:] > best[:-1]])]
    axes.step(cost[edge], score[edge], where="post", color=COLOURS[0], linewidth=1.2)
    axes.scatter(cost[front], score[front], s=20, color=COLOURS[0], zorder=3, label="front")
    shown = np.unique(np.linspace(0, len(front) - 1, min(len(front), _MOST_LABELS)).round().astype(int))
    for place in shown:
        at = (cost[front[place]], score[front[place]])
        axes.annotate(str(place + 1), at, (0, 5), textcoords="offset points", ha="center", size=7, color=INK)
    if cost.min() > 0 and cost.max() > 20 * cost.min():
        axes.set_xscale("log", subs=(2, 5))
        axes.xaxis.set_minor_formatter(EngFormatter(unit, sep=separator))
    axes.xaxis.set_major_formatter(EngFormatter(unit, sep=separator))
    top, low = score[front].max(), score[front].min()
    room = 0.08 * (top - low) or 1.0
    axes.set_ylim(max(score.min(), 3 * low - 2 * top) - room, top + 2 * room)
    axes.set(xlabel=name, ylabel="guessed score", title=f"{len(front)} of {len(cost):,} on the front")
    axes.legend(frameon=False, loc="lower right")
