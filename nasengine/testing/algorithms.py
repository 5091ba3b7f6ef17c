"""The laws of algorithms."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from nasengine.algorithm import Algorithm, StepInfo, load_state_dict, state_dict
from nasengine.budget import CostModel, Limits
from nasengine.evolution import Budget
from nasengine.seeding import generator
from nasengine.settings import from_plain, plain
from nasengine.testing._parts import require, same
from nasengine.testing.sized import SIZED_SHAPES, sized
from nasengine.testing.toys import Solvable, place, smooth, solvable

STEPS: Final = 6
"""Steps that `check_algorithm` takes."""


def check_algorithm(
    algorithm: Algorithm[Any], toys: Sequence[Callable[[], Solvable]] = (solvable, smooth, sized)
) -> None:
    """All laws of an algorithm, on the solvable model, a small smooth classifier, and one with sizes.

    Args:
        algorithm: what is checked.
        toys: models that it can search; the last one must have batch norm and something that a seed decides.
    """
    check_settings(algorithm)
    for toy in toys:
        models = [toy() for _ in range(4)]
        _check_steps(algorithm, *models[:2])
        _check_continuation(algorithm, *models[2:])
    if sized in toys:
        _check_limits(algorithm)
    _check_seeds(algorithm, toys[-1])
    _check_statistics(algorithm, toys[-1])


def check_settings(algorithm: Algorithm[Any]) -> None:
    """The fields are frozen, and come back from JSON."""
    require(dataclasses.is_dataclass(algorithm), "an algorithm must be a dataclass")
    for field in dataclasses.fields(algorithm):
        try:
            setattr(algorithm, field.name, getattr(algorithm, field.name))
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"an algorithm must be frozen, but {field.name!r} can be set")
    again = from_plain(type(algorithm), json.loads(json.dumps(plain(algorithm))), "algo")
    require(again == algorithm, "the settings must come back from their plain form")


def run_steps(algorithm: Algorithm[Any], state: object, model: Solvable, steps: int) -> list[StepInfo]:
    """Takes steps on the two batches of a toy."""
    return [algorithm.step(state, model.train, model.valid) for _ in range(steps)]


def _check_steps(algorithm: Algorithm[Any], first: Solvable, second: Solvable) -> None:
    before = plain(algorithm)
    states = [algorithm.init(model.supernet, generator(0), STEPS) for model in (first, second)]
    for _ in range(STEPS):  # in turns: what the instance remembered of one search would show in the other
        infos = [run_steps(algorithm, s, m, 1)[0] for s, m in zip(states, (first, second), strict=True)]
        require(same(infos[0], infos[1]), "equal seeds must give equal steps")
        require(
            not any(tensor.requires_grad for tensor in infos[0] if tensor is not None),
            "a StepInfo must carry no gradient",
        )
    require(same(*map(state_dict, states)), "equal seeds must give equal states")
    require(plain(algorithm) == before, "an algorithm must not change its settings")

    saved = _saved(states[0])
    supernet, mixture = algorithm.supernet(states[0]), algorithm.mixture(states[0])
    require(mixture.keys() == supernet.choices.keys(), "the mixture must decide every choice")
    soft = [weights for weights in mixture.values() if isinstance(weights, Tensor)]
    require(not any(weights.requires_grad for weights in soft), "the mixture must carry no gradient")
    supernet.space.check(supernet.choices, algorithm.derive(states[0]))
    require(same(saved, state_dict(states[0])), "mixture, supernet and derive must change nothing")


def _check_continuation(algorithm: Algorithm[Any], first: Solvable, second: Solvable) -> None:
    state = algorithm.init(first.supernet, generator(0), STEPS)
    run_steps(algorithm, state, first, STEPS // 2)
    place(second.supernet, 0.5)
    other = algorithm.init(second.supernet, generator(1), STEPS)
    load_state_dict(other, state_dict(state))
    require(same(_saved(other), state_dict(state)), "a state must come back from a file as plain values and tensors")
    for s, model in ((state, first), (other, second)):
        run_steps(algorithm, s, model, STEPS - STEPS // 2)
    require(same(state_dict(state), state_dict(other)), "a state that was saved must continue bit for bit")


def _check_limits(algorithm: Algorithm[Any]) -> None:
    model = sized()
    space, choices = model.supernet.space, model.supernet.choices
    costs = CostModel(space, SIZED_SHAPES)
    least, most = (costs.of(a).multiply_adds for a in (space.smallest(choices), space.largest(choices)))
    limits = Limits(multiply_adds=(least + most) // 2)
    state = algorithm.init(model.supernet, generator(0), STEPS)
    run_steps(algorithm, state, model, STEPS)
    budget = Budget(limits, costs, lambda architecture: costs.of(architecture).multiply_adds, generator(0, 4))
    found = algorithm.derive(state, budget)
    require(budget.allows(found), "derive(state, budget) must keep the limits of the budget")


def _check_seeds(algorithm: Algorithm[Any], toy: Callable[[], Solvable]) -> None:
    states = []
    for seed in range(2):
        model = toy()
        states.append(algorithm.init(model.supernet, generator(seed), STEPS))
        run_steps(algorithm, states[-1], model, STEPS)
    require(not same(*map(state_dict, states)), "another seed must give another search")


def _check_statistics(algorithm: Algorithm[Any], toy: Callable[[], Solvable]) -> None:
    model = toy()
    state = algorithm.init(model.supernet, generator(0), STEPS)
    run_steps(algorithm, state, model, 1)
    supernet = algorithm.supernet(state)
    counts = [int(buffer) for name, buffer in supernet.named_buffers() if name.endswith("num_batches_tracked")]
    require(max(counts) <= 1, f"a step must update the batch-norm statistics once at most, but did {max(counts)} times")
    before = copy.deepcopy(dict(supernet.named_buffers()))
    supernet.evaluate(model.valid, algorithm.mixture(state), dict(supernet.named_parameters()))
    require(same(before, dict(supernet.named_buffers())), "a virtual pass must leave the batch-norm statistics alone")


def _saved(state: object) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict(state), file)
    file.seek(0)
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    return saved
