"""Architectures under limits: evolution by measured scores, and the likeliest one by the alphas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nasengine.architecture import Architecture, Choice
from nasengine.budget import CostModel, Limits
from nasengine.settings import setting, validate
from nasengine.space import Space

_TRIES = 20
_DRAWS, _MORE_DRAWS = 3, 10


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """Evolution of architectures (arXiv:1802.01548, as once-for-all uses it, arXiv:1908.09791, 3.4)."""

    population: int = setting(16, "architectures of a generation", low=2)
    generations: int = setting(8, "generations after the first", low=0)
    parents: float = setting(0.25, "share of the best that have children and stay", above=0, high=1)
    mutants: float = setting(0.5, "share of the children that are mutants, the others cross two parents", low=0, high=1)
    mutation: float = setting(0.1, "probability that a mutant takes a choice anew, besides one", above=0, high=1)

    def __post_init__(self) -> None:
        validate(self, "algo.evolution")


class Scored(NamedTuple):
    """An architecture and what was measured of it, higher is better."""

    score: float
    architecture: Architecture


class Candidates(NamedTuple):
    """Where architectures come from and which are allowed.

    Attributes:
        space, choices: of the architectures.
        allowed: whether one keeps all limits.
        start: one that is allowed.
    """

    space: Space
    choices: Mapping[str, Choice]
    allowed: Callable[[Architecture], bool]
    start: Architecture

    def random(self, rng: torch.Generator) -> Architecture:
        """A sample; where samples break the limits, one that is mixed with `start` until it keeps them."""
        return self._first_allowed(lambda: self.space.sample(self.choices, rng), rng)

    def mutant(self, parent: Architecture, rate: float, rng: torch.Generator) -> Architecture:
        """`parent` with every choice taken anew with probability `rate`, and one in any case."""
        labels = list(self.choices)

        def make() -> Architecture:
            anew = labels[int(torch.randint(len(labels), (), generator=rng))]
            return self._mixed(parent, self.space.sample(self.choices, rng), rate, rng, anew)

        return self._first_allowed(make, rng)

    def child(self, one: Architecture, other: Architecture, rng: torch.Generator) -> Architecture:
        """Every choice from one of two parents at random."""
        return self._first_allowed(lambda: self._mixed(one, other, 0.5, rng), rng)

    def _first_allowed(self, make: Callable[[], Architecture], rng: torch.Generator) -> Architecture:
        for attempt in range(_TRIES):
            candidate = self._mixed(make(), self.start, max(0.0, 2 * attempt / _TRIES - 0.4), rng)
            if self.allowed(candidate):
                return candidate
        return self.start

    def _mixed(
        self, one: Architecture, other: Architecture, share: float, rng: torch.Generator, anew: str = ""
    ) -> Architecture:
        """`one` with about `share` of its choices, and that of label `anew`, from `other`.

        It is made an architecture of the space by its `derive`, which takes what it has to add from both.
        """
        weights = {}
        for label, choice in self.choices.items():
            taken, left = (
                (other, one) if float(torch.rand((), generator=rng)) < share or label == anew else (one, other)
            )
            weights[label] = 0.5 * torch.rand(len(choice.options), generator=rng)
            weights[label][choice.options.index(left[label])] += 0.5
            weights[label][choice.options.index(taken[label])] += 1
        return self.space.derive(self.choices, weights)


def evolve(
    candidates: Candidates,
    score: Callable[[Architecture], float],
    settings: EvolutionSettings,
    rng: torch.Generator,
    first: Sequence[Architecture] = (),
    watch: Callable[[int, Scored], None] = lambda generation, best: None,
) -> list[Scored]:
    """All architectures that were measured, best first; each is measured once. Ends early where nothing new is left.

    Args:
        candidates: where they come from; everything returned is allowed.
        score: measures one.
        settings: of the evolution.
        rng: draws them.
        first: part of the first generation, those that are allowed.
        watch: is told the best after every generation.
    """
    known: dict[Architecture, float] = {}

    def measured(found: Sequence[Architecture]) -> list[Scored]:
        for architecture in found:
            if architecture not in known:
                known[architecture] = score(architecture)
        return sorted((Scored(known[a], a) for a in dict.fromkeys(found)), key=lambda s: -s.score)

    start = [candidates.start, *filter(candidates.allowed, first)]
    more = max(0, settings.population - len(start))
    population = measured([*start, *(candidates.random(rng) for _ in range(more))])
    watch(0, population[0])
    for generation in range(1, settings.generations + 1):
        parents = [s.architecture for s in population[: max(1, round(settings.parents * settings.population))]]
        children = _children(candidates, parents, settings, known, rng)
        if not children:
            break
        population = measured([*parents, *children])
        watch(generation, population[0])
    return sorted((Scored(value, a) for a, value in known.items()), key=lambda s: -s.score)


def _children(
    candidates: Candidates,
    parents: list[Architecture],
    settings: EvolutionSettings,
    known: Collection[Architecture],
    rng: torch.Generator,
) -> list[Architecture]:
    """Mutants and crossings that are not known yet; fewer than a generation has, or none, where few are left."""

    def parent() -> Architecture:
        return parents[int(torch.randint(len(parents), (), generator=rng))]

    count = max(1, settings.population - len(parents))
    found: dict[Architecture, None] = {}
    for _ in range(_DRAWS * count + _MORE_DRAWS):
        if len(found) == count:
            break
        if float(torch.rand((), generator=rng)) < settings.mutants:
            child = candidates.mutant(parent(), settings.mutation, rng)
        else:
            child = candidates.child(parent(), parent(), rng)
        if child not in known:
            found[child] = None
    return list(found)


@dataclass(frozen=True)
class Budget:
    """What an algorithm may spend on deriving, and what the architecture may cost.

    Attributes:
        limits: on cost.
        costs: of the architectures of the space; None where there are no limits.
        judge: measured accuracy of an architecture with inherited weights; None where nothing may be measured.
        rng: draws candidates.
        watch: is told what happens.
    """

    limits: Limits
    costs: CostModel | None
    judge: Callable[[Architecture], float] | None
    rng: torch.Generator
    watch: Callable[[str], None] = lambda text: None

    def allows(self, architecture: Architecture) -> bool:
        """Whether an architecture keeps the limits."""
        return self.excess(architecture) == 0

    def excess(self, architecture: Architecture) -> float:
        """By how much an architecture is above the limits, 0 if it keeps them."""
        return 0.0 if self.costs is None else self.costs.excess(architecture, self.limits)

    def candidates(self, space: Space, choices: Mapping[str, Choice]) -> Candidates:
        """The architectures that keep the limits. Raises LimitError if none does."""
        smallest = space.smallest(choices)
        start = smallest if self.costs is None else self.costs.nearest(self.limits)
        return Candidates(space, choices, self.allows, start)


_SEARCH = EvolutionSettings(population=48, generations=16)
_CLIMBS = 8


def likeliest(
    space: Space, choices: Mapping[str, Choice], weights: Mapping[str, Tensor], budget: Budget | None
) -> Architecture:
    """What the space derives from a soft mixture; where that breaks a limit, the likeliest that evolution finds.

    It begins with what is derived, made cheaper by changes of one choice that cost the least likelihood for what they
    save, and the best that it finds are improved by such changes.
    """
    best = space.derive(choices, weights)
    if budget is None or budget.allows(best):
        return best
    shares = {label: row.detach().double().cpu() for label, row in weights.items()}

    def fit(architecture: Architecture) -> float:
        return space.likelihood(choices, shares, architecture)

    candidates = budget.candidates(space, choices)
    found = evolve(candidates, fit, _SEARCH, budget.rng, [_eased(best, candidates, fit, budget.excess)])
    return max((_climbed(start, candidates, fit) for start in found[:_CLIMBS]), key=lambda s: s.score).architecture


def _eased(
    best: Architecture,
    candidates: Candidates,
    score: Callable[[Architecture], float],
    excess: Callable[[Architecture], float],
) -> Architecture:
    """Where changes of one choice, always the one that loses the least score for the excess it saves, end."""
    while (over := excess(best)) > 0:
        here = score(best)
        saved = {a: over - excess(a) for a in candidates.space.neighbours(candidates.choices, best)}
        lost = {a: (here - score(a)) / saving for a, saving in saved.items() if saving > 0}
        if not lost:
            break
        best = min(lost, key=lost.__getitem__)
    return best


def _climbed(best: Scored, candidates: Candidates, score: Callable[[Architecture], float]) -> Scored:
    """Where changes of one choice, always the best one that is allowed, end."""
    while True:
        moves = [Scored(score(a), a) for a in candidates.space.neighbours(candidates.choices, best.architecture)]
        better = sorted((move for move in moves if move.score > best.score), key=lambda s: -s.score)
        allowed = next((move for move in better if candidates.allowed(move.architecture)), None)
        if allowed is None:
            return best
        best = allowed
