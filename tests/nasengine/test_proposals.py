"""Candidates of a search: its own distribution, its neighbours, its limits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from nasengine.architecture import Architecture
from nasengine.budget import CostModel, Limits
from nasengine.evolution import Budget, Scored
from nasengine.proposals import around, best_of, perturbed
from nasengine.seeding import generator
from nasengine.task import Shapes
from search_spaces.darts import DARTS
from search_spaces.nasbench201 import NASBench201
from tests.nasengine.dense import Dense

IMAGES = Shapes((3, 8, 8), 4)
SPACE = NASBench201(channels=2, cells=1)
CHOICES = SPACE.choices(IMAGES)


def budget(limits: Limits = Limits(), seed: int = 0) -> Budget:  # noqa: B008
    costs = CostModel(SPACE, IMAGES) if limits else None
    return Budget(limits, costs, None, generator(seed))


def mixture(sharpness: float, seed: int = 1) -> dict[str, Tensor]:
    rng = generator(seed)
    return {
        label: (sharpness * torch.rand(len(choice.options), generator=rng)).softmax(0)
        for label, choice in CHOICES.items()
    }


def test_options_are_drawn_by_their_weights() -> None:
    weights, rng = {"x": torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)}, generator(0)
    drawn = Counter(int(perturbed(weights, rng)["x"].argmax()) for _ in range(4000))
    assert [drawn[place] / 4000 for place in range(4)] == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.03)


def test_what_is_derived_comes_first_and_all_differ() -> None:
    weights = mixture(3.0)
    derived = SPACE.derive(CHOICES, weights)
    found = around(SPACE, CHOICES, derived, weights, 40, budget())
    assert found[0] == (derived, "derived") and len({candidate.architecture for candidate in found}) == 40
    origins = Counter(candidate.origin for candidate in found)
    assert origins == {"derived": 1, "neighbour": 10, "sampled": 29}
    neighbours = SPACE.neighbours(CHOICES, derived)
    for architecture, origin in found:
        SPACE.check(CHOICES, architecture)
        assert origin != "neighbour" or architecture in neighbours
    assert around(SPACE, CHOICES, derived, weights, 40, budget()) == found
    assert around(SPACE, CHOICES, derived, weights, 40, budget(seed=1)) != found


def test_a_narrow_distribution_is_filled_up() -> None:
    derived = SPACE.sample(CHOICES, generator(3))
    sure = {
        label: torch.eye(len(choice.options))[choice.options.index(derived[label])] for label, choice in CHOICES.items()
    }
    found = around(SPACE, CHOICES, derived, sure, 40, budget())
    assert Counter(candidate.origin for candidate in found) == {"derived": 1, "neighbour": 24, "random": 15}


def test_more_than_there_are() -> None:
    space = Dense()
    shapes = Shapes((4,), 2)
    choices = space.choices(shapes)
    weights = {label: torch.full((len(choice.options),), 1 / 3) for label, choice in choices.items()}
    found = around(space, choices, space.derive(choices, weights), weights, 10**9, budget())
    assert len(found) == 9


def test_a_choice_without_weights_stays_mostly_as_it_is_derived() -> None:
    derived = SPACE.sample(CHOICES, generator(3))
    sampled = [c for c in around(SPACE, CHOICES, derived, SPACE_HARD, 200, budget()) if c.origin == "sampled"]
    changed = [sum(a[label] != derived[label] for label in CHOICES) for a, _ in sampled]
    assert len(sampled) > 50 and 1 <= sum(changed) / len(changed) < 2.5


SPACE_HARD = dict.fromkeys(CHOICES, 0)


def test_cells_differ_in_their_texts() -> None:
    cells = DARTS(nodes=1, channels=2, layers=3)
    choices = cells.choices(IMAGES)
    weights = {label: torch.full((len(choice.options),), 0.1) for label, choice in choices.items()}
    found = around(
        cells, choices, cells.derive(choices, weights), weights, 100, Budget(Limits(), None, None, generator(0))
    )
    assert len(found) == 100 and len({cells.write(architecture) for architecture, _ in found}) == 100


def test_candidates_keep_the_limits() -> None:
    costs = CostModel(SPACE, IMAGES)
    some = [costs.of(SPACE.sample(CHOICES, generator(seed))).multiply_adds for seed in range(20)]
    limits = Limits(multiply_adds=sorted(some)[5])
    weights = mixture(1.0)
    within = budget(limits)
    derived = within.candidates(SPACE, CHOICES).start
    found = around(SPACE, CHOICES, derived, weights, 30, within)
    assert len(found) == 30 and all(costs.excess(architecture, limits) == 0 for architecture, _ in found)


def test_of_an_evolution_the_front_comes_first() -> None:
    costs = CostModel(SPACE, IMAGES)
    several = [SPACE.sample(CHOICES, generator(seed)) for seed in range(12)]
    scored = [Scored(float(place % 7), architecture) for place, architecture in enumerate(several)]
    found = best_of(scored, 6, Budget(Limits(), costs, None, generator(0)))
    score = {scored_.architecture: scored_.score for scored_ in scored}
    assert found[0].origin == "derived" and score[found[0].architecture] == 6.0
    front = [a for a in several if not any(_better(b, a, score, costs) for b in several)]
    assert {a for a, _ in found[: len(front)]} == set(front[:6])
    assert [origin for _, origin in found[1:]] == ["evolved"] * 5


def _better(one: Architecture, other: Architecture, score: dict[Architecture, float], costs: CostModel) -> bool:
    mine = score[one], -costs.of(one).multiply_adds
    theirs = score[other], -costs.of(other).multiply_adds
    return mine[0] >= theirs[0] and mine[1] >= theirs[1] and mine != theirs
