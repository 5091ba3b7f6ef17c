"""The laws of predictors."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.stats import kendalltau
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from nasengine.architecture import Architecture
from nasengine.config import AnySpace
from nasengine.encoding import Graphs
from nasengine.errors import ArchitectureError, DataError, NasengineError, RunError
from nasengine.predictor import CIFAR, Predictor, load_predictor
from nasengine.settings import plain
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.testing._parts import require, samples

Floats = NDArray[np.float64]

_DRAWN = 240  # half of those that are different are labels
_CLOSE = 1e-4  # of the range of the scores: float32, in another order


class _Labels(NamedTuple):
    """Architectures of a space, all of them different networks, with a known score; `rest` are held out."""

    space: Space
    known: list[Architecture]
    scores: Floats
    rest: list[Architecture]
    truth: Floats


def check_predictor(
    predictor: Predictor | type[Predictor],
    space: AnySpace | None = None,
    shapes: Shapes | None = None,
    pairs: Sequence[tuple[Architecture, Architecture]] = (),
) -> None:
    """All laws of a predictor, which is fitted some six times to at most 120 labels.

    Args:
        predictor: what is checked; of a class, its default settings.
        space: of which architectures are drawn, one with 40 different networks or more; that of the predictor if None.
        shapes: of the data on which they would be trained; those of the predictor if None.
        pairs: more architectures of one network in two texts; those that differ in idle choices are found.
    """
    checked = _instance(predictor, space, shapes)
    _check_conventions(checked)
    labels = _labels(checked.check(), checked.shapes)
    _check_unfitted(checked, labels)
    fitted = _check_fit(checked, labels)
    _check_answers(fitted, labels)
    _check_same_networks(fitted, labels, pairs)
    _check_file(fitted, labels)
    _check_refit(fitted, labels)
    _check_ranks(checked, fitted, labels)
    _check_refusals(fitted, labels)


def _instance(predictor: Predictor | type[Predictor], space: AnySpace | None, shapes: Shapes | None) -> Predictor:
    if isinstance(predictor, type):
        if space is None:
            raise AssertionError("A class of predictors must be checked on a space, but none is given.")
        return predictor(space=space, shapes=shapes or CIFAR)
    given = {name: value for name, value in {"space": space, "shapes": shapes}.items() if value is not None}
    changed: Predictor = clone(predictor).set_params(**given)
    return changed


def known_scores(graphs: Graphs) -> Floats:
    """(N,): between 0.8 and 1, a smooth function of how often each operation is there and of how many edges."""
    words = (graphs.operations[:, :, None] == np.arange(len(graphs.vocabulary))).sum(axis=1)
    edges = graphs.adjacency.sum(axis=(1, 2))
    weights = np.cos(2.0 * np.arange(len(graphs.vocabulary)) ** 1.5)  # looks like drawn at random
    raw = words @ weights + 0.3 * edges
    return np.asarray(0.9 + 0.1 * np.tanh((raw - raw.mean()) / (raw.std() + 1e-9)))


def _labels(space: Space, shapes: Shapes) -> _Labels:
    drawn = list(dict.fromkeys(samples(space, shapes, _DRAWN)))
    graphs = space.encode(drawn, shapes)
    first = np.sort(np.unique(graphs.unique()[1], return_index=True)[1])
    require(len(first) >= 40, f"a space to check predictors on must have 40 different networks, but has {len(first)}")
    different, scores = [drawn[row] for row in first], known_scores(graphs.take(first))
    half = len(first) // 2
    return _Labels(space, different[:half], scores[:half], different[half:], scores[half:])


def _check_conventions(predictor: Predictor) -> None:
    """Those of scikit-learn: settings are parameters, and a clone has the same ones."""
    again = clone(predictor)
    require(type(again) is type(predictor), "a clone must be of the same class")
    require(repr(again) == repr(predictor), "a clone must have the same settings")
    parameters = predictor.get_params(deep=False)
    missing = [name for name in plain(predictor) if name not in parameters]
    require(not missing, f"every setting must be a parameter, but {missing} are not")
    other = type(predictor)(**parameters)
    require(repr(other.set_params(**parameters)) == repr(predictor), "set_params must set what get_params gives")
    require(type(predictor).__name__ in repr(predictor), "the text of a predictor must name its class")


def _check_unfitted(predictor: Predictor, labels: _Labels) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictor.safetensors"
        _require_refusal("an unfitted one must not predict", NotFittedError, lambda: predictor.predict(labels.known))
        _require_refusal("an unfitted one must not be saved", NotFittedError, lambda: predictor.save(path))
        require(not path.exists(), "what is not fitted must leave no file")


def _check_fit(predictor: Predictor, labels: _Labels) -> Predictor:
    """Fits twice under other global random states, once with a list and once with a tuple of unlabelled ones."""
    known, scores, rest = list(labels.known), labels.scores.copy(), list(labels.rest)
    settings, found = repr(predictor), []
    before = _random_states()
    try:
        for seed, pool in enumerate((rest, tuple(rest))):
            fitted: Predictor = clone(predictor)
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            states = _random_states()
            require(fitted.fit(known, scores, unlabelled=pool) is fitted, "fit must give the predictor itself")
            found.append(fitted.predict(rest))
            require(_equal(states, _random_states()), "a predictor must leave the global random states alone")
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
    unchanged = known == labels.known and rest == labels.rest and np.array_equal(scores, labels.scores)
    require(unchanged, "fit must not change what it is given")
    require(repr(fitted) == settings, "fit must not change the settings")
    require(np.array_equal(found[0], found[1]), "equal seeds must give equal predictions, bit for bit")
    return fitted


def _check_answers(fitted: Predictor, labels: _Labels) -> None:
    asked = [*labels.rest, *labels.known]
    means, deviations = fitted.predict(asked, return_std=True)
    for name, values in (("predictions", means), ("deviations", deviations)):
        require(
            values.shape == (len(asked),) and values.dtype == np.float64, f"{name} must be one float64 an architecture"
        )
        require(bool(np.isfinite(values).all()), f"{name} must be finite")
    require(bool((deviations >= 0).all()), "deviations must not be negative")
    require(np.array_equal(fitted.predict(asked), means), "return_std must not change the predictions")

    guesses, truth = means[: len(labels.rest)], labels.truth
    error, spread = np.mean((guesses - truth) ** 2), np.mean((labels.scores.mean() - truth) ** 2)
    require(bool(error < spread), "a predictor must beat the mean of the labels on architectures that it has not seen")
    tau = float(kendalltau(guesses, truth).statistic)
    require(tau > 0.3, f"predictions must rank architectures, with a Kendall tau above 0.3, but it is {tau:.2f}")

    order = np.random.default_rng(0).permutation(len(asked))
    permuted = fitted.predict([asked[row] for row in order])
    require(np.array_equal(permuted, means[order]), "permuting a batch must permute the answer, exactly")
    twice = fitted.predict([architecture for architecture in asked for _ in range(2)])
    require(np.array_equal(twice[::2], twice[1::2]), "the same architecture must have the same score within a batch")
    _require_close(twice[::2], means, "a score must not depend on the batch")
    alone = np.concatenate([fitted.predict([architecture]) for architecture in asked[:20]])
    _require_close(alone, means[:20], "a score must not depend on the batch")
    require(fitted.predict([]).shape == (0,), "an empty batch must have an empty answer")


def _check_same_networks(
    fitted: Predictor, labels: _Labels, pairs: Sequence[tuple[Architecture, Architecture]]
) -> None:
    """Exactly equal scores where the encodings are equal, close ones where only the graphs are."""
    space, shapes = labels.space, fitted.shapes
    for one, other in [*_idle_pairs(space, shapes, labels.known), *pairs]:
        scores = fitted.predict([one, other])
        law = f"architectures of one network must have one score, but {one} and {other} do not"
        exact = len(space.encode([one, other], shapes).unique()[0]) == 1
        require(not exact or scores[0] == scores[1], law)
        require(abs(scores[0] - scores[1]) <= _CLOSE * np.ptp(labels.scores), law)


def _idle_pairs(
    space: Space, shapes: Shapes, architectures: Sequence[Architecture]
) -> list[tuple[Architecture, Architecture]]:
    """Architectures with one that differs in all idle choices."""
    choices, found = space.choices(shapes), []
    for architecture in architectures[:20]:
        last = {label: choices[label].options[-1] for label in space.unused(choices, architecture)}
        other = Architecture({**architecture, **last})
        if other != architecture and space.canonical(choices, other) == architecture:
            found.append((architecture, other))
    return found


def _check_file(fitted: Predictor, labels: _Labels) -> None:
    expected = fitted.predict(labels.rest, return_std=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictor.safetensors"
        fitted.save(path)
        require(len(load_file(path)) > 0, "a saved predictor must be a file of arrays")
        loaded = load_predictor(path)
        require(type(loaded) is type(fitted), "a loaded predictor must be of the class that was saved")
        require(plain(loaded) == plain(fitted), "a loaded predictor must have the settings that were saved")
        for actual, wanted in zip(loaded.predict(labels.rest, return_std=True), expected, strict=True):
            _require_close(actual, wanted, "a loaded predictor must predict what the saved one does", 1e-6)
        content = path.read_bytes()
        middle = len(content) - len(content) // 4
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for name, damaged in {"cut": content[:middle], "changed": changed, "foreign": b"no predictor"}.items():
            path.write_bytes(damaged)
            _require_refusal(f"a file that is {name} must be refused", RunError, lambda: load_predictor(path))


def _check_refit(fitted: Predictor, labels: _Labels) -> None:
    """To other labels, under another seed and without a pool, as one that has never seen the first ones."""
    if "seed" in fitted.get_params():
        fitted.set_params(seed=fitted.get_params()["seed"] + 1)
    states = _random_states()
    both = (fitted, clone(fitted))
    found = [predictor.fit(labels.rest, -labels.truth).predict(labels.known) for predictor in both]
    require(np.array_equal(found[0], found[1]), "a predictor that is fitted again must forget what it was fitted to")
    require(_equal(states, _random_states()), "a predictor must leave the global random states alone")


def _check_ranks(predictor: Predictor, fitted: Predictor, labels: _Labels) -> None:
    """Two fits, between which only the scores differ, by a strictly rising function."""
    fitted.set_params(**predictor.get_params(deep=False))
    rising = (labels.scores, np.exp(20.0 * labels.scores) - 1e6)
    found = [fitted.fit(labels.known, scores).predict(labels.rest) for scores in rising]
    tau = float(kendalltau(*found).statistic)
    require(tau > 0.999, f"a strictly rising function of the scores must keep the ranking, but the tau is {tau:.3f}")


def _check_refusals(fitted: Predictor, labels: _Labels) -> None:
    """One sentence for each bad input, and what was fitted stays."""
    known, scores = labels.known[:6], labels.scores[:6]
    before = fitted.predict(labels.rest)
    other = Architecture({"choice-of-no-space": "none"})
    fits: dict[str, tuple[type[Exception], Any, Any, Any]] = {
        "no labels": (DataError, [], [], None),
        "constant scores": (DataError, known, np.ones(6), None),
        "scores that are not finite": (DataError, known, [*scores[:5], np.nan], None),
        "texts as scores": (DataError, known, ["good"] * 6, None),
        "scores of two outputs": (DataError, known, np.stack([scores, scores], axis=1), None),
        "too few scores": (DataError, known, scores[:5], None),
        "two scores for one architecture": (DataError, [*known[:5], known[0]], np.arange(6.0), None),
        "an empty pool": (DataError, known, scores, []),
        "an architecture of another space": (ArchitectureError, [*known[:5], other], scores, None),
        "a pool of another space": (ArchitectureError, known, scores, [other]),
        "texts as architectures": (ArchitectureError, [str(architecture) for architecture in known], scores, None),
        "no sequence": (ArchitectureError, None, scores, None),
    }
    for name, (kind, architectures, values, pool) in fits.items():
        _require_refusal(f"{name} must be refused", kind, lambda a=architectures, v=values, p=pool: fitted.fit(a, v, p))  # type: ignore[misc]
    for asked in ([other], [str(known[0])], None):
        law = "what is no architecture of the space must be refused"
        _require_refusal(law, ArchitectureError, lambda a=asked: fitted.predict(a))  # type: ignore[misc]
    require(
        np.array_equal(fitted.predict(labels.rest), before), "what is refused must leave the fitted predictor alone"
    )


def _require_refusal(law: str, kind: type[Exception], run: Callable[[], object]) -> None:
    try:
        run()
    except kind as error:
        one = str(error).endswith(".") and "\n" not in str(error)
        require(one or not isinstance(error, NasengineError), f"{law} in one sentence, but got {str(error)!r}")
        return
    except Exception as error:
        raise AssertionError(f"{law[0].upper()}{law[1:]} by {kind.__name__}, but got {error!r}.") from error
    raise AssertionError(f"{law[0].upper()}{law[1:]}, but is not.")


def _require_close(actual: Floats, expected: Floats, law: str, tolerance: float = _CLOSE) -> None:
    scale = float(np.ptp(expected)) + float(np.abs(expected).max()) * 1e-3
    difference = float(np.abs(actual - expected).max())
    require(difference <= tolerance * scale, f"{law}, but they differ by {difference:.1e}")


def _random_states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _equal(one: tuple[Any, Any, torch.Tensor], other: tuple[Any, Any, torch.Tensor]) -> bool:
    numpy = all(np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    return bool(one[0] == other[0]) and numpy and torch.equal(one[2], other[2])
