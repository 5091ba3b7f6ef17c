"""The contract tests of predictors find what they are there to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from nasengine.architecture import Architecture
from nasengine.encoding import Graphs
from nasengine.predictor import Predictor
from nasengine.settings import setting
from nasengine.task import Shapes
from nasengine.testing import SmoothSpace, check_predictor
from search_spaces.nasbench201 import NASBench201

Floats = NDArray[np.float64]


@dataclass(kw_only=True, eq=False, repr=False)
class Counts(Predictor):
    """Least squares on counts of operations and edges."""

    name: ClassVar[str] = ""

    shrink: float = setting(1e-3, "added to the diagonal", above=0)
    seed: int = setting(0, "of nothing", low=0)

    def counts(self, graphs: Graphs) -> Floats:
        words = (graphs.operations[:, :, None] == np.arange(len(graphs.vocabulary))).sum(axis=1)
        ones = np.ones((len(graphs), 1))
        return np.concatenate([words, graphs.adjacency.sum(axis=(1, 2))[:, None], ones], axis=1).astype(np.float64)

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        inputs = self.counts(graphs)
        self._weights = np.linalg.solve(inputs.T @ inputs + self.shrink * np.eye(inputs.shape[1]), inputs.T @ targets)

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        means = (self.counts(graphs) * self._weights).sum(axis=1)
        return means, np.ones(len(means))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"weights": self._weights}

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._weights = arrays["weights"]


class Mean(Counts):
    """Gives the mean of what it has seen."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        super()._fit(graphs, targets, pool)
        self._weights = np.zeros_like(self._weights)


class Contrary(Counts):
    """Says the contrary."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        super()._fit(graphs, 0.01 * targets, pool)
        self._weights = -self._weights


class Relative(Counts):
    """Compares what is asked with what else is asked."""

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        means, deviations = super()._predict(graphs, return_std)
        return means - means.mean(), deviations


class Global(Counts):
    """Draws from numpy's global generator."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        super()._fit(graphs, targets + 1e-3 * np.random.normal(size=len(targets)), pool)


class Seeding(Counts):
    """Sets torch's global seed."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        torch.manual_seed(self.seed)
        super()._fit(graphs, targets, pool)


class Restless(Counts):
    """Has bits of its own every time."""

    fits: ClassVar[int] = 0

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        Restless.fits += 1
        super()._fit(graphs, targets * (1 + 1e-9 * Restless.fits), pool)


class Remembering(Counts):
    """Adds up what it has learned."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        before = getattr(self, "_weights", 0.0)
        super()._fit(graphs, targets, pool)
        self._weights = self._weights + 0.1 * before


class Unsure(Counts):
    """Has negative deviations."""

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        means, deviations = super()._predict(graphs, return_std)
        return means, deviations - 2.0


class Silent(Counts):
    """Has no number for some."""

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        means, deviations = super()._predict(graphs, return_std)
        return means, np.where(means > 0, deviations, np.nan)


class Unsaved(Counts):
    """Leaves something out of its file."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        super()._fit(graphs, targets, pool)
        self._factor = 1.5

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        means, deviations = super()._predict(graphs, return_std)
        return means * getattr(self, "_factor", 1.0), deviations


class Tidying(Counts):
    """Sorts the list that it is given."""

    def fit(
        self, architectures: Sequence[Architecture], scores: ArrayLike, unlabelled: Sequence[Architecture] | None = None
    ) -> Self:
        super().fit(architectures, scores, unlabelled)
        if isinstance(architectures, list):
            architectures.sort(key=str)
        return self


class Adjusting(Counts):
    """Changes a setting as it is fitted."""

    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        self.shrink = 1.0 / len(targets)
        super()._fit(graphs, targets, pool)


class Linear(Counts):
    """Takes scores as they are, and not by their ranks."""

    def fit_graphs(self, graphs: Graphs, scores: Floats, unlabelled: Graphs | None = None) -> Self:
        super().fit_graphs(graphs, scores, unlabelled)
        self._fit(graphs, (scores - scores.mean()) / scores.std(), graphs)
        return self


class Numbering(Counts):
    """Sees how nodes are numbered."""

    def counts(self, graphs: Graphs) -> Floats:
        first = np.zeros((len(graphs), len(graphs.vocabulary)))
        first[np.arange(len(graphs)), graphs.operations[:, min(1, graphs.operations.shape[1] - 1)]] = 1.0
        return np.concatenate([super().counts(graphs), first], axis=1)


class Careless(Counts):
    """Takes what comes."""

    def fit(
        self, architectures: Sequence[Architecture], scores: ArrayLike, unlabelled: Sequence[Architecture] | None = None
    ) -> Self:
        values = np.nan_to_num(np.asarray(scores, dtype=np.float64))
        return super().fit(architectures, values, unlabelled)


class Hasty(Counts):
    """Guesses less exactly where no deviations are asked for."""

    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        means, deviations = super()._predict(graphs, return_std)
        return means if return_std else np.round(means, 1), deviations


LAWS: list[tuple[type[Predictor], str]] = [
    (Mean, "must (beat the mean|rank architectures)"),
    (Contrary, "must (beat the mean|rank architectures)"),
    (Relative, "must not depend on the batch"),
    (Global, "leave the global random states alone"),
    (Seeding, "leave the global random states alone"),
    (Restless, "equal seeds must give equal predictions"),
    (Remembering, "must forget what it was fitted to"),
    (Unsure, "deviations must not be negative"),
    (Silent, "deviations must be finite"),
    (Hasty, "return_std must not change the predictions"),
    (Unsaved, "loaded predictor must predict what the saved one does"),
    (Tidying, "fit must not change what it is given"),
    (Adjusting, "fit must not change the settings"),
    (Linear, "strictly rising function of the scores must keep the ranking"),
    (Numbering, "architectures of one network must have one score"),
    (Careless, "scores that are not finite must be refused"),
]


def check(kind: type[Predictor]) -> None:
    """On two cells whose inner nodes have changed places, as well."""
    texts = (
        "|nor_conv_1x1~0|+|avg_pool_3x3~0|none~1|+|none~0|skip_connect~1|nor_conv_3x3~2|",
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|none~1|+|none~0|nor_conv_3x3~1|skip_connect~2|",
    )
    space = NASBench201()
    check_predictor(kind, space=space, pairs=[(space.read(texts[0]), space.read(texts[1]))])


def test_a_good_predictor_passes() -> None:
    check(Counts)


@pytest.mark.parametrize(("kind", "law"), LAWS, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_predictors_do_not_pass(kind: type[Predictor], law: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){law}"):
        check(kind)


def test_what_a_predictor_is_checked_on() -> None:
    with pytest.raises(AssertionError, match="A class of predictors must be checked on a space, but none is given"):
        check_predictor(Counts)
    with pytest.raises(AssertionError, match="must have 40 different networks, but has 9"):
        check_predictor(Counts, space=SmoothSpace(), shapes=Shapes((4,), 3))
