"""Candidates of a search: what it derives, samples of its own distribution, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nasengine.architecture import Architecture, Choice
from nasengine.evolution import Budget, Scored
from nasengine.space import Space
from nasengine.supernet import Mixture

Origin = Literal["derived", "sampled", "neighbour", "evolved", "random"]

_NEIGHBOURS = 0.25
"""Share of the candidates that are neighbours of what is derived."""
_ELSEWHERE = 0.1
"""Probability of another option where a search has no weights over options, as of a mutation in an evolution."""
_TRIES, _PATIENCE = 20, 1000
_TINY = 1e-12


class Candidate(NamedTuple):
    """An architecture that a search proposes, and how it came to it."""

    architecture: Architecture
    origin: Origin


def around(
    space: Space,
    choices: Mapping[str, Choice],
    derived: Architecture,
    mixture: Mixture,
    count: int,
    budget: Budget,
) -> list[Candidate]:
    """Up to `count` different candidates that keep the limits, the derived one first.

    A quarter are neighbours; the others are drawn: every choice takes an option with the probability of its weight in
    the mixture, as the largest sum of its logarithm and Gumbel noise (arXiv:1411.0030), of which the space derives an
    architecture. A distribution that is too narrow for so many is filled up with neighbours and random architectures.
    """
    found = _Found(count, budget.allows)
    found.add(derived, "derived")
    neighbours = _shuffled(space.neighbours(choices, derived), budget.rng)
    found.some(neighbours[: round(_NEIGHBOURS * count)], "neighbour")
    shares = {label: _weights(mixture[label], choice, derived[label]) for label, choice in choices.items()}
    found.draw(lambda: space.derive(choices, perturbed(shares, budget.rng)), "sampled")
    found.some(neighbours, "neighbour")
    if not found.enough:
        start = budget.candidates(space, choices)
        found.draw(lambda: start.random(budget.rng), "random")
    return found.candidates


def filled(
    found: Sequence[Candidate],
    space: Space,
    choices: Mapping[str, Choice],
    mixture: Mixture,
    count: int,
    budget: Budget,
) -> list[Candidate]:
    """What was found, the best first, and what is around the best where that is fewer than `count`."""
    if len(found) >= count:
        return list(found)
    known = {candidate.architecture for candidate in found}
    more = around(space, choices, found[0].architecture, mixture, count, budget)
    return [*found, *(candidate for candidate in more if candidate.architecture not in known)][:count]


def best_of(evolved: Sequence[Scored], count: int, budget: Budget, origin: Origin = "evolved") -> list[Candidate]:
    """The best candidates that were measured: those that nothing is both better and cheaper than, then by score."""
    ordered = sorted(evolved, key=lambda scored: -scored.score)
    if budget.costs is not None:
        least, front = float("inf"), list[Scored]()
        for scored in ordered:
            cost = budget.costs.of(scored.architecture).multiply_adds
            if cost < least:
                least = cost
                front.append(scored)
        ordered = [*front, *(scored for scored in ordered if scored not in front)]
    found = _Found(count, budget.allows)
    found.some([scored.architecture for scored in ordered[:1]], "derived")
    found.some([scored.architecture for scored in ordered], origin)
    return found.candidates


class _Found:
    """Different candidates, as many as are wanted."""

    def __init__(self, count: int, allowed: Callable[[Architecture], bool]) -> None:
        self.count, self.allowed, self.origins = count, allowed, dict[Architecture, Origin]()

    @property
    def enough(self) -> bool:
        return len(self.origins) >= self.count

    @property
    def candidates(self) -> list[Candidate]:
        return [Candidate(architecture, origin) for architecture, origin in self.origins.items()]

    def add(self, architecture: Architecture, origin: Origin) -> None:
        if not self.enough and architecture not in self.origins and self.allowed(architecture):
            self.origins[architecture] = origin

    def some(self, architectures: Sequence[Architecture], origin: Origin) -> None:
        for architecture in architectures:
            self.add(architecture, origin)

    def draw(self, make: Callable[[], Architecture], origin: Origin) -> None:
        """Adds what is drawn until there is enough of it, or for long nothing new came."""
        idle = 0
        for _ in range(_TRIES * self.count):
            if self.enough or idle > _PATIENCE + _TRIES * len(self.origins):
                break
            before = len(self.origins)
            self.add(make(), origin)
            idle = 0 if len(self.origins) > before else idle + 1


def _weights(decided: object, choice: Choice, option: str) -> Tensor:
    """Probabilities (options,) of a choice: its weights in the mixture, or mostly the derived option."""
    if isinstance(decided, Tensor):
        return decided.detach().double().cpu().abs()
    others = max(1, len(choice.options) - 1)
    weights = torch.full((len(choice.options),), _ELSEWHERE / others, dtype=torch.float64)
    weights[choice.options.index(option)] = 1 - _ELSEWHERE
    return weights


def perturbed(shares: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """Weights whose largest one is that of an option with the probability of its share."""
    noisy = {}
    for label, share in shares.items():
        uniform = torch.rand(len(share), generator=rng, dtype=torch.float64).clamp(_TINY, 1 - _TINY)
        noisy[label] = (share.clamp(min=_TINY).log() - (-uniform.log()).log()).softmax(0)
    return noisy


def _shuffled(architectures: Sequence[Architecture], rng: torch.Generator) -> list[Architecture]:
    return [architectures[place] for place in torch.randperm(len(architectures), generator=rng).tolist()]
