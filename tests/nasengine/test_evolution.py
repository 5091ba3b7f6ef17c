from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.budget import CostModel, Limits
from nasengine.errors import LimitError, SettingError
from nasengine.evolution import Budget, Candidates, EvolutionSettings, Scored, evolve, likeliest
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import MixedOp
from nasengine.task import Shapes
from nasengine.testing import SizedSpace
from search_spaces.darts import DARTS

SIZED, SIGNALS = SizedSpace(), Shapes((2, 5), 3)
QUICK = EvolutionSettings(population=8, generations=4)


@dataclass(frozen=True, kw_only=True)
class Edges(Space):
    """Five choices between four operations that all do nothing."""

    def network(self, shapes: Shapes) -> nn.Module:
        return nn.Sequential(*(MixedOp(f"e{e}", {f"o{o}": nn.Identity() for o in range(4)}) for e in range(5)))


EDGES = Edges().choices(SIGNALS)
TABLE: dict[str, list[float]] = {
    label: torch.rand(4, generator=generator(place)).tolist() for place, label in enumerate(EDGES)
}


def score(architecture: Architecture) -> float:
    """Larger for some operations of every edge, and for pairs that go together."""
    places = [int(option[1:]) for option in architecture.values()]
    single = sum(TABLE[label][place] for label, place in zip(EDGES, places, strict=True))
    return single + sum(0.2 for one, other in itertools.pairwise(places) if one == other)


def light(architecture: Architecture) -> bool:
    return sum(int(option[1:]) for option in architecture.values()) <= 4


def candidates(allowed: Callable[[Architecture], bool] = lambda a: True) -> Candidates:
    return Candidates(Edges(), EDGES, allowed, Edges().smallest(EDGES))


def every(space: Space, choices: Mapping[str, Choice]) -> Iterator[Architecture]:
    """All different networks."""
    ways = itertools.product(*(choice.options for choice in choices.values()))
    found = (space.canonical(choices, Architecture(dict(zip(choices, way, strict=True)))) for way in ways)
    return iter(dict.fromkeys(found))


# Evolution


def test_all_that_is_returned_is_allowed_measured_once_and_in_order() -> None:
    measured: list[Architecture] = []

    def measure(architecture: Architecture) -> float:
        measured.append(architecture)
        return score(architecture)

    found = evolve(candidates(light), measure, EvolutionSettings(), generator(0))
    assert len(measured) == len(set(measured)) == len(found) and {s.architecture for s in found} == set(measured)
    assert all(light(s.architecture) and s.score == score(s.architecture) for s in found)
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    assert len(found) > 16  # there are children


def test_the_best_never_falls() -> None:
    seen: list[tuple[int, Scored]] = []
    found = evolve(
        candidates(), score, QUICK, generator(1), watch=lambda generation, best: seen.append((generation, best))
    )
    scores = [best.score for _, best in seen]
    assert [generation for generation, _ in seen] == [0, 1, 2, 3, 4]
    assert scores == sorted(scores) and seen[-1][1] == found[0] and scores[0] < scores[-1]


def test_a_function_of_the_generator() -> None:
    one, again, other = (evolve(candidates(), score, QUICK, generator(seed)) for seed in (0, 0, 1))
    assert one == again and one != other


@pytest.mark.parametrize("allowed", [lambda a: True, light], ids=["free", "limited"])
def test_the_optimum_is_found(allowed: Callable[[Architecture], bool]) -> None:
    best = max(filter(allowed, every(Edges(), EDGES)), key=score)
    settings = EvolutionSettings(population=32, generations=16)
    found = [evolve(candidates(allowed), score, settings, generator(seed))[0] for seed in range(10)]
    assert sum(answer.architecture == best for answer in found) >= 9
    assert all(answer.score >= 0.95 * score(best) for answer in found)


def test_evolution_is_better_than_chance() -> None:
    wins = 0
    for seed in range(20):
        found, rng = evolve(candidates(), score, EvolutionSettings(), generator(seed)), generator(seed, 1)
        drawn = max(score(Edges().sample(EDGES, rng)) for _ in range(len(found)))
        wins += found[0].score > drawn
    assert wins >= 15


def test_it_ends_where_nothing_new_is_left() -> None:
    few = {Architecture.parse(f"e0=o{place} e1=o0 e2=o0 e3=o0 e4=o0") for place in range(4)}
    seen: list[int] = []
    settings = EvolutionSettings(population=16, generations=1000)
    found = evolve(
        candidates(few.__contains__),
        score,
        settings,
        generator(0),
        watch=lambda generation, best: seen.append(generation),
    )
    assert {s.architecture for s in found} == few and len(seen) < 10


def test_a_limit_that_one_architecture_keeps() -> None:
    asked = 0
    start = Edges().smallest(EDGES)

    def only(architecture: Architecture) -> bool:
        nonlocal asked
        asked += 1
        return architecture == start

    settings = EvolutionSettings(population=4, generations=3)
    assert evolve(candidates(only), score, settings, generator(0)) == [Scored(score(start), start)]
    assert asked <= 1000


def test_the_first_generation_has_what_is_given_and_allowed() -> None:
    heavy, small = Edges().largest(EDGES), Architecture.parse("e0=o1 e1=o1 e2=o0 e3=o0 e4=o0")
    settings = EvolutionSettings(population=2, generations=0)
    found = evolve(candidates(light), score, settings, generator(0), [heavy, small])
    assert {s.architecture for s in found} == {small, Edges().smallest(EDGES)}
    assert heavy in [s.architecture for s in evolve(candidates(), score, settings, generator(0), [heavy])]


def test_few_settings_of_evolution_are_allowed() -> None:
    assert evolve(candidates(), score, EvolutionSettings(population=2, parents=1.0, mutants=0.0), generator(0))
    with pytest.raises(SettingError, match=r"algo\.evolution\.population must be at least 2, but got 1"):
        EvolutionSettings(population=1)


def test_candidates_of_a_space_with_rules_are_its_own() -> None:
    space = DARTS(channels=4, layers=3)
    choices, rng = space.choices(), generator(0)
    found = Candidates(space, choices, lambda a: True, space.smallest(choices))
    one, other = found.random(rng), found.random(rng)
    for architecture in (one, found.mutant(one, 0.3, rng), found.child(one, other, rng)):
        space.check(choices, architecture)
    child = found.child(one, other, rng)
    assert all(option in (one[label], other[label], "none") for label, option in child.items())


def test_a_mutant_takes_one_choice_anew_at_least() -> None:
    parent, rng = Edges().largest(EDGES), generator(0)
    changed = [
        sum(mutant[label] != parent[label] for label in EDGES)
        for mutant in (candidates().mutant(parent, rate, rng) for rate in (1e-9, 1.0) for _ in range(200))
    ]
    assert sum(changed[:200]) == pytest.approx(200 * 3 / 4, abs=25) and max(changed[:200]) == 1
    assert sum(changed[200:]) == pytest.approx(200 * 5 * 3 / 4, abs=60)


# The budget


def test_a_budget_without_limits_allows_everything() -> None:
    budget = Budget(Limits(), None, None, generator(0))
    choices = SIZED.choices(SIGNALS)
    assert all(map(budget.allows, every(SIZED, choices)))
    assert budget.candidates(SIZED, choices).start == SIZED.smallest(choices)


def test_a_budget_allows_what_keeps_its_limits() -> None:
    costs = CostModel(SIZED, SIGNALS)
    middle = costs.of(SIZED.sample(costs.choices, generator(0)))
    budget = Budget(Limits(*middle), costs, None, generator(0))
    for architecture in every(SIZED, costs.choices):
        kept = all(cost <= limit for cost, limit in zip(costs.of(architecture), middle, strict=True))
        assert budget.allows(architecture) == kept
    assert budget.allows(budget.candidates(SIZED, costs.choices).start)
    with pytest.raises(LimitError, match="--max-params 1 is below"):
        Budget(Limits(1), costs, None, generator(0)).candidates(SIZED, costs.choices)


# The likeliest architecture


def shares(choices: Mapping[str, Choice], seed: int) -> dict[str, Tensor]:
    rng = generator(seed)
    return {label: (1.5 * torch.randn(len(c.options), generator=rng)).softmax(0) for label, c in choices.items()}


def test_what_keeps_the_limits_is_derived() -> None:
    costs = CostModel(SIZED, SIGNALS)
    most = costs.of(SIZED.largest(costs.choices))
    weights = shares(costs.choices, 0)
    derived = SIZED.derive(costs.choices, weights)
    for budget in (None, Budget(Limits(), None, None, generator(0)), Budget(Limits(*most), costs, None, generator(0))):
        assert likeliest(SIZED, costs.choices, weights, budget) == derived


def limits_of(costs: CostModel, seed: int) -> Limits:
    one, other = (costs.of(SIZED.sample(costs.choices, generator(seed, place))) for place in (1, 2))
    both = Limits(max(one.parameters, other.parameters), max(one.multiply_adds, other.multiply_adds))
    return (Limits(one.parameters), Limits(None, one.multiply_adds), both)[seed % 3]


def test_under_limits_it_is_the_likeliest_of_all_in_19_of_20_cases() -> None:
    costs = CostModel(SIZED, SIGNALS)
    networks, hits = list(every(SIZED, costs.choices)), 0
    for seed in range(20):
        weights, limits = shares(costs.choices, seed), limits_of(costs, seed)
        found = likeliest(SIZED, costs.choices, weights, Budget(limits, costs, None, generator(seed, 3)))
        assert costs.excess(found, limits) == 0

        def fit(architecture: Architecture, weights: Mapping[str, Tensor] = weights) -> float:
            return SIZED.likelihood(costs.choices, weights, architecture)

        hits += fit(found) >= max(fit(a) for a in networks if costs.excess(a, limits) == 0) - 1e-6
    assert hits >= 19


def test_no_single_change_is_likelier() -> None:
    costs = CostModel(SizedSpace(widths=(2, 4, 6, 8), blocks=4), SIGNALS)
    space = costs.space
    least, most = costs.of(space.smallest(costs.choices)), costs.of(space.largest(costs.choices))
    limits = Limits((least.parameters + most.parameters) // 3)
    for seed in range(3):
        weights = shares(costs.choices, seed)
        found = likeliest(space, costs.choices, weights, Budget(limits, costs, None, generator(seed)))
        reached = space.likelihood(costs.choices, weights, found)
        for other in space.neighbours(costs.choices, found):
            assert costs.excess(other, limits) > 0 or space.likelihood(costs.choices, weights, other) <= reached + 1e-6
