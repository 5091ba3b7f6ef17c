"""The contract of a performance predictor, in scikit-learn's conventions."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError

from nasengine.architecture import Architecture
from nasengine.config import AnySpace, plain_plugin, resolve_space
from nasengine.encoding import Graphs, concatenate
from nasengine.errors import DataError, RunError
from nasengine.quantiles import Quantiles
from nasengine.registry import SPACES, Registry
from nasengine.run import replace_file
from nasengine.settings import from_plain, given, plain, validate
from nasengine.space import Space
from nasengine.task import Shapes

if TYPE_CHECKING:
    Floats = NDArray[np.float64]

CIFAR: Final = Shapes((3, 32, 32), 10)

_BATCH = 16384
_VERSION = 1


@dataclass(kw_only=True, eq=False, repr=False)
class Predictor(RegressorMixin, BaseEstimator, abc.ABC):  # type: ignore[misc]
    """Guesses the scores of architectures from labelled and unlabelled ones; higher is better.

    A subclass is a dataclass (not frozen: scikit-learn sets parameters) with a class attribute `name`, whose fields
    beside `space` and `shapes` are settings. It writes `_fit`, `_predict`, `_arrays` and `_restore`, which see arrays
    only: architectures come as `Graphs`, and scores as the quantiles of a normal distribution, so that outliers such as
    trainings that diverged count by their rank.

    Attributes:
        space: a name, class or instance of the space of the architectures.
        shapes: of the data on which they are trained; a part of the encoding is their cost there.
    """

    name: ClassVar[str] = ""

    space: AnySpace = given()
    shapes: Shapes = given(CIFAR)

    def fit(
        self,
        architectures: Sequence[Architecture],
        scores: ArrayLike,
        unlabelled: Sequence[Architecture] | None = None,
    ) -> Self:
        """Fits to labelled architectures with their scores (N,), and to unlabelled ones of the same space.

        Raises:
            DataError: scores that are constant, not finite, of more than one output or two for one architecture; an
                empty pool.
            ArchitectureError: an architecture of another space.
        """
        space, targets = self.check(), checked_scores(architectures, scores)
        if unlabelled is not None and not len(unlabelled):
            raise DataError(
                "A pool of unlabelled architectures must not be empty, but is; leave it out, or give some of the space."
            )
        pool = None if unlabelled is None else space.encode(unlabelled, self.shapes)
        return self.fit_graphs(space.encode(architectures, self.shapes), targets, pool)

    def fit_graphs(self, graphs: Graphs, scores: Floats, unlabelled: Graphs | None = None) -> Self:
        """`fit` to architectures that are encoded already, with finite scores (N,) that differ."""
        self._space = self.check()
        self.quantiles_ = Quantiles.of(scores)
        pool = graphs if unlabelled is None else concatenate([graphs, unlabelled])
        self._fit(graphs, self.quantiles_.forward(scores), pool)
        return self

    @overload
    def predict(self, architectures: Sequence[Architecture], return_std: Literal[False] = False) -> Floats: ...
    @overload
    def predict(self, architectures: Sequence[Architecture], return_std: Literal[True]) -> tuple[Floats, Floats]: ...
    def predict(
        self, architectures: Sequence[Architecture], return_std: bool = False
    ) -> Floats | tuple[Floats, Floats]:
        """The guessed scores (N,), and with `return_std` their standard deviations (N,).

        A score does not depend on what else is asked for; architectures with equal encodings have equal scores.

        Raises:
            NotFittedError: the predictor is not fitted.
        """
        self._check_fitted()
        if not len(architectures):
            return (np.zeros(0), np.zeros(0)) if return_std else np.zeros(0)
        starts = range(0, len(architectures), _BATCH)
        parts = [self._space.encode(architectures[start : start + _BATCH], self.shapes) for start in starts]
        graphs, places = concatenate(parts).unique()
        scores, deviations = self.predict_graphs(graphs, return_std)
        return (scores[places], deviations[places]) if return_std else scores[places]

    def predict_graphs(self, graphs: Graphs, return_std: bool = True) -> tuple[Floats, Floats]:
        """The guessed scores (N,) of architectures that are encoded already, and their standard deviations (N,).

        Without `return_std` these are NaN.
        """
        self._check_fitted()
        starts = range(0, len(graphs), _BATCH)
        batches = [self._predict(graphs.take(slice(start, start + _BATCH)), return_std) for start in starts]
        means = np.concatenate([mean for mean, _ in batches])
        scores = self.quantiles_.backward(means)
        if not return_std:
            return scores, np.full(len(scores), np.nan)
        return scores, np.concatenate([deviation for _, deviation in batches]) * self.quantiles_.slope(means)

    def save(self, path: Path | str) -> None:
        """Writes the fitted predictor into one safetensors file, from which `load_predictor` makes it again."""
        from safetensors.numpy import save

        if not hasattr(self, "quantiles_"):
            raise NotFittedError(
                f"The predictor {self.name!r} must be fitted before it is saved, but is not; call fit."
            )
        about = {
            "version": _VERSION,
            "predictor": plain_plugin(PREDICTORS, self),
            "space": plain_plugin(SPACES, self._space),
            "shapes": plain(self.shapes),
        }
        arrays = {"quantiles": self.quantiles_.knots, **{f"state.{name}": a for name, a in self._arrays().items()}}
        contiguous = {name: array.copy(order="C") for name, array in arrays.items()}
        content = save(contiguous, metadata={"nasengine": json.dumps(about)})
        replace_file(Path(path), lambda partial: partial.write_bytes(content))

    def check(self) -> Space:
        """The space. Raises SettingError for a setting of the wrong type or range."""
        validate(self, "predictor")
        return resolve_space(self.space, {}, {})

    def _check_fitted(self) -> None:
        if not hasattr(self, "quantiles_"):
            raise NotFittedError(
                f"The predictor {self.name!r} must be fitted before it predicts, but is not; call fit."
            )

    @abc.abstractmethod
    def _fit(self, graphs: Graphs, targets: Floats, pool: Graphs) -> None:
        """Fits to N graphs with targets (N,); the pool begins with them and goes on with the unlabelled ones."""

    @abc.abstractmethod
    def _predict(self, graphs: Graphs, return_std: bool) -> tuple[Floats, Floats]:
        """Means and standard deviations (N,) of the targets; these count only if they are asked for."""

    @abc.abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """All that was fitted, as arrays that `_restore` takes."""

    @abc.abstractmethod
    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Puts back what `_arrays` gave."""


PREDICTORS = Registry("predictor", Predictor, "predictors", "nasengine.predictors")  # type: ignore[type-abstract]


def load_predictor(path: Path | str) -> Predictor:
    """The fitted predictor in a file that `Predictor.save` wrote; nothing in it can run code. Raises RunError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["nasengine"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["version"] != _VERSION:
            raise KeyError
        settings = dict(about["predictor"])
        kind = PREDICTORS[settings.pop("name")]
        space, shapes = resolve_space(None, about["space"], {}), from_plain(Shapes, about["shapes"], "shapes")
        predictor = from_plain(kind, settings, "predictor", {"space": space, "shapes": shapes})
        predictor._space, predictor.quantiles_ = space, Quantiles(arrays.pop("quantiles"))
        predictor._restore({name.removeprefix("state."): array for name, array in arrays.items()})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        raise RunError(
            f"A saved predictor must be a whole file of this version of nasengine, but {path} is not; fit and save it "
            "anew."
        ) from None
    return predictor


def checked_scores(architectures: Sequence[Architecture], scores: ArrayLike) -> Floats:
    """The scores as numbers (N,). Raises DataError where nothing can be fitted to them."""
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"Scores must be numbers, but got {str(scores)[:60]!r}; give one an architecture.") from None
    if values.ndim != 1:
        raise DataError(
            f"A predictor must have one output, but the scores have the shape {values.shape}; give one number an "
            "architecture."
        )
    if len(values) != len(architectures):
        raise DataError(
            f"There must be one score an architecture, but there are {len(values)} for {len(architectures)}; drop the "
            "others."
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"Scores must be finite, but that of architecture {row + 1} is {values[row]}; drop it, or give a failed "
            "training the score of chance."
        )
    if len(np.unique(values)) < 2:
        count = f"are {values[0]:g} all {len(values)} times" if len(values) else "are none"
        raise DataError(f"Scores must differ for a predictor to be fitted, but they {count}; label more architectures.")
    _check_repeats(architectures, values)
    return values


def _check_repeats(architectures: Sequence[Architecture], scores: Floats) -> None:
    first: dict[Architecture, int] = {}
    for row, architecture in enumerate(architectures):
        known = first.setdefault(architecture, row)
        if scores[known] != scores[row]:
            raise DataError(
                f"An architecture must have one score, but those of rows {known + 1} and {row + 1} are the same and "
                f"have {scores[known]:g} and {scores[row]:g}; give their mean."
            )
