"""All candidates of a pipeline in one table: what was predicted of them, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from nasengine.finals import Finalist

if TYPE_CHECKING:
    import pandas as pd

TABLE: Final = "candidates.csv"


def candidate_table(
    proposed: pd.DataFrame, ranking: pd.DataFrame, keys: Sequence[str], finals: Sequence[Finalist]
) -> pd.DataFrame:
    """One row a candidate, the best predicted first.

    Args:
        proposed: the candidates, with their source and costs.
        ranking: of all of them, as `rank` writes it.
        keys: the columns that tell them apart, in both tables.
        finals: the trainings of the first ones.

    Returns:
        rank, the columns of `proposed`, predicted, uncertainty, measured (the label, NaN without one), trained (the
        mean score of the final trainings on what they held out) and trained_deviation (NaN for fewer than two).
    """
    guessed = ranking[[*keys, "rank", "score", "uncertainty", "known"]]
    guessed = guessed.rename(columns={"score": "predicted", "known": "measured"})
    table = proposed.merge(guessed, on=list(keys), how="left", validate="one_to_one").sort_values("rank")
    whole = {final.rank: final for final in finals if final.scores}
    means = {rank: final.mean for rank, final in whole.items()}
    spreads = {rank: final.deviation for rank, final in whole.items()}
    table["trained"] = table["rank"].map(means).astype(float)
    table["trained_deviation"] = table["rank"].map(spreads).astype(float)
    return table[["rank", *(name for name in table if name != "rank")]].reset_index(drop=True)


def worth(table: pd.DataFrame, seconds_a_label: float) -> dict[str, float | int]:
    """What the predictor was good for.

    Returns:
        kendall_tau: between predicted and trained scores, where three or more candidates were trained.
        regret: how far the trained score of the best predicted candidate is below the best trained one.
        saved_seconds: what labelling the other candidates as well would have cost.
    """
    from scipy.stats import kendalltau

    trained = table[table["trained"].notna()]
    found: dict[str, float | int] = {"trained_candidates": len(trained)}
    if len(trained) >= 3 and trained["trained"].nunique() > 1:
        found["kendall_tau"] = float(kendalltau(trained["predicted"], trained["trained"]).statistic)
    if len(trained):
        found["regret"] = float(trained["trained"].max() - trained["trained"].iloc[0])
    found["saved_seconds"] = round(float(table["measured"].isna().sum()) * seconds_a_label, 1)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def chosen_rows(count: int, wanted: int, order: Sequence[int]) -> list[int]:
    """Which of `count` candidates are labelled: the first one, which the search derived, and others by `order`."""
    return sorted([0, *(row for row in order if row)][: min(wanted, count)])
