"""The contract of a performance predictor, in scikit-learn's conventions."""

from __future__ import annotations

import abc
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError

from nasengine.architecture import Architecture, Choice
from nasengine.config import AnySpace, plain_plugin, resolve_space
from nasengine.encoding import Graphs, concatenate
from nasengine.errors import ArchitectureError, DataError, NasengineError, NoOrderError, RunError, SettingError
from nasengine.quantiles import Quantiles
from nasengine.registry import SPACES, Registry
from nasengine.run_directory import replace_file
from nasengine.settings import from_plain, given, plain, validate
from nasengine.space import Space
from nasengine.task import Shapes

if TYPE_CHECKING:
    Floats = NDArray[np.float64]

CIFAR: Final = Shapes((3, 32, 32), 10)

_BATCH = 16384
_VERSION = 1
_HUGE = 1e150  # so that no slope between scores overflows


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
            ArchitectureError: what is no architecture, or one of another space.
            SettingError: a setting of the wrong type or out of range.
        """
        space = self.check()
        choices = space.choices(self.shapes)
        checked_architectures(space, choices, architectures)
        targets = checked_scores(architectures, scores)
        if unlabelled is not None:
            checked_architectures(space, choices, unlabelled)
            if not len(unlabelled):
                raise DataError(
                    "A pool of unlabelled architectures must not be empty, but is; leave it out, or give some of the "
                    "space."
                )
        pool = None if unlabelled is None else space.encode(unlabelled, self.shapes)
        return self.fit_graphs(space.encode(architectures, self.shapes), targets, pool)

    def fit_graphs(self, graphs: Graphs, scores: Floats, unlabelled: Graphs | None = None) -> Self:
        """`fit` to architectures that are encoded already, with finite scores (N,) that differ."""
        space, quantiles = self.check(), Quantiles.of(scores)
        pool = graphs if unlabelled is None else concatenate([graphs, unlabelled])
        self.__dict__.pop("quantiles_", None)  # should the next line fail, nothing is fitted
        self._fit(graphs, quantiles.forward(scores), pool)
        self._fitted_to(space, self.shapes, quantiles)
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
            ArchitectureError: what is no architecture, or one of another space.
        """
        self._check_fitted()
        checked_architectures(self._space, self._choices, architectures)
        if not len(architectures):
            return (np.zeros(0), np.zeros(0)) if return_std else np.zeros(0)
        starts = range(0, len(architectures), _BATCH)
        parts = [self._space.encode(architectures[start : start + _BATCH], self._shapes) for start in starts]
        graphs, places = concatenate(parts).unique()
        scores, deviations = self.predict_graphs(graphs, return_std)
        return (scores[places], deviations[places]) if return_std else scores[places]

    def predict_graphs(self, graphs: Graphs, return_std: bool = True) -> tuple[Floats, Floats]:
        """The guessed scores (N,) of architectures that are encoded already, and their standard deviations (N,).

        Without `return_std` these are NaN.
        """
        self._check_fitted()
        if not len(graphs):
            return np.zeros(0), np.zeros(0)
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
            "predictor": {"name": PREDICTORS.spec(self), **self._settings},
            "space": plain_plugin(SPACES, self._space),
            "shapes": plain(self._shapes),
        }
        arrays = {"quantiles": self.quantiles_.knots, **{f"state.{name}": a for name, a in self._arrays().items()}}
        contiguous = {name: array.copy(order="C") for name, array in arrays.items()}
        text = json.dumps(about)
        content = save(contiguous, metadata={"nasengine": text, "checksum": _checksum(text, contiguous)})
        replace_file(Path(path), lambda partial: partial.write_bytes(content))

    def check(self) -> Space:
        """The space. Raises SettingError for a setting of the wrong type or range."""
        validate(self, "predictor")
        if self.space is None:
            raise SettingError("The space of a predictor must be a name, a class or an instance of Space, but is None.")
        if not isinstance(self.shapes, Shapes):
            raise SettingError(
                f"The shapes of a predictor must be of type Shapes, but got a {type(self.shapes).__name__}; write "
                f"{CIFAR}."
            )
        return resolve_space(self.space, {}, {})

    def _check_fitted(self) -> None:
        if not hasattr(self, "quantiles_"):
            raise NotFittedError(
                f"The predictor {self.name!r} must be fitted before it predicts, but is not; call fit."
            )

    def _fitted_to(self, space: Space, shapes: Shapes, quantiles: Quantiles) -> None:
        self._space, self._shapes, self._choices = space, shapes, space.choices(shapes)
        self._settings = plain(self)  # parameters may be set after the fit
        self.quantiles_ = quantiles

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
    """The fitted predictor in a file that `Predictor.save` wrote: plain values and arrays.

    Plug-ins that it names by a module or file are imported, as those of a run.

    Raises:
        RunError: the file is missing, damaged or of another version.
        NasengineError: a plug-in or setting that it names is not there.
    """
    if not os.path.exists(path):
        raise RunError(f"There must be a saved predictor at {path}, but there is none; fit one and save it.")
    try:
        about, arrays = _read(path)
        settings = dict(about["predictor"])
        kind = PREDICTORS[settings.pop("name")]
        space, shapes = resolve_space(None, about["space"], {}), from_plain(Shapes, about["shapes"], "shapes")
        predictor = from_plain(kind, settings, "predictor", {"space": space, "shapes": shapes})
        predictor._fitted_to(space, shapes, Quantiles(arrays.pop("quantiles")))
        predictor._restore({name.removeprefix("state."): array for name, array in arrays.items()})
    except NasengineError:
        raise
    except (OSError, LookupError, ValueError, TypeError):
        raise RunError(
            f"A saved predictor must be a whole file of this version of nasengine, but {path} is not; fit and save it "
            "anew."
        ) from None
    return predictor


def _read(path: Path | str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What is in a file. Raises OSError, KeyError or ValueError unless it is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(path) from error
    about: dict[str, Any] = json.loads(metadata["nasengine"])
    if about["version"] != _VERSION or metadata["checksum"] != _checksum(metadata["nasengine"], arrays):
        raise ValueError(path)
    return about, arrays


def _checksum(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of all that a file has: the format knows whether it is cut, not whether it is changed."""
    checksum = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.tobytes(), checksum)
    return f"{checksum:08x}"


def checked_architectures(space: Space, choices: Mapping[str, Choice], architectures: Sequence[Architecture]) -> None:
    """Raises ArchitectureError unless they are a sequence of architectures of the space.

    A sequence that makes them when they are asked for is of one space: its first one stands for all.
    """
    if not isinstance(architectures, Sequence) or isinstance(architectures, (str, bytes)):
        raise ArchitectureError(
            f"Architectures must come in a sequence, but got a {type(architectures).__name__}; give a list."
        )
    rows = architectures if isinstance(architectures, (list, tuple)) else architectures[:1]
    for row, architecture in enumerate(rows, start=1):
        if not isinstance(architecture, Architecture):
            raise ArchitectureError(
                f"A predictor must be given architectures, but number {row} is a {type(architecture).__name__}; make "
                "texts architectures by the read of their space."
            )
        try:
            space.check_options(choices, architecture)
        except ArchitectureError as error:
            raise ArchitectureError(
                f"A predictor must be given architectures of its space, {space.name!r}, but number {row} is none: "
                f"{error}"
            ) from None


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
    _check_spread(values)
    _check_repeats(architectures, values)
    return values


def _check_spread(values: Floats) -> None:
    different = np.unique(values)
    if len(different) < 2:
        count = f"are {values[0]:g} all {len(values)} times" if len(values) else "are none"
        raise NoOrderError(
            f"Scores must differ for a predictor to be fitted, but they {count}; label more architectures."
        )
    if np.abs(values).max() > _HUGE or np.diff(different).min() < 1 / _HUGE:
        raise DataError(
            f"Scores must be at most {_HUGE:g} and differ by {1 / _HUGE:g} or more, but are from {different[0]:g} to "
            f"{different[-1]:g}; give them in another unit."
        )


def _check_repeats(architectures: Sequence[Architecture], scores: Floats) -> None:
    first: dict[Architecture, int] = {}
    for row, architecture in enumerate(architectures):
        known = first.setdefault(architecture, row)
        if scores[known] != scores[row]:
            raise DataError(
                f"An architecture must have one score, but those of rows {known + 1} and {row + 1} are the same and "
                f"have {scores[known]:g} and {scores[row]:g}; give their mean."
            )
