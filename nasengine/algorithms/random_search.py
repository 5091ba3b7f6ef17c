"""Random search with weight sharing: the baseline that every other search has to beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from nasengine.algorithm import Algorithm, StepInfo, WeightSettings, optimise
from nasengine.architecture import Architecture
from nasengine.evolution import Budget, Scored
from nasengine.proposals import Candidate, best_of, filled
from nasengine.settings import group, setting, validate
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Batch

_TOLD = 25


@dataclass(kw_only=True)
class RandomSearchState:
    """All that changes while random architectures train the weights they share."""

    supernet: Supernet
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Algorithm[RandomSearchState]):
    """Random search with weight sharing: nothing is learnt of the architecture until weights have been shared.

    Each step: draw a, every choice uniformly (`Space.sample`), and take one step of descent on L_train(w, a) in the
    weights of a alone; the others stay as they are. The answer is the best of `samples` random architectures that
    keep the limits, by measured validation accuracy with the shared weights and statistics of their own.

    A step costs one forward and one backward pass of one architecture. Where nothing may be measured, as between the
    epochs of a search, the answer is a random architecture: the one that the next step would train.

    Differs from the paper: it scores 1000 architectures on one batch each and the ten best of them on all of the
    validation data; here every one is scored on all of it. Its cosine falls once an epoch, here at every step. A weight
    with elastic sizes is one tensor: what is outside of the drawn slice feels momentum and weight decay. The
    training's draws know nothing of limits.

    References: Li, Talwalkar, UAI 2019, arXiv:1902.07638, algorithm 1.
    """

    name: ClassVar[str] = "random"

    samples: int = setting(100, "random architectures that are measured for the answer", low=1)
    weights: WeightSettings = group(WeightSettings, "optimiser of the weights")

    def __post_init__(self) -> None:
        validate(self, "algo")

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> RandomSearchState:
        optimizer = self.weights.make(supernet.parameters())
        return RandomSearchState(supernet=supernet, optimizer=optimizer, generator=generator, step=0, steps=steps)

    def step(self, state: RandomSearchState, train: Batch, valid: Batch) -> StepInfo:
        del valid
        supernet = state.supernet
        drawn = supernet.space.sample(supernet.choices, state.generator)
        evaluation = supernet.evaluate(train, supernet.hard(drawn))
        evaluation.loss.backward()  # type: ignore[no-untyped-call]
        optimise(state.optimizer, self.weights.rate(state.step, state.steps), self.weights.clip)
        state.step += 1
        return StepInfo(evaluation.loss.detach(), evaluation.outputs)

    def mixture(self, state: RandomSearchState) -> Mixture:
        """The full network: no architecture is better than another until they are measured."""
        return state.supernet.full()

    def supernet(self, state: RandomSearchState) -> Supernet:
        return state.supernet

    def derive(self, state: RandomSearchState, budget: Budget | None = None) -> Architecture:
        """The best by measured accuracy; where nothing may be measured, a random one."""
        if budget is not None and budget.judge is not None:
            return self._measured(state, budget, budget.judge)[0].architecture
        space, choices, rng = state.supernet.space, state.supernet.choices, torch.Generator()
        rng.set_state(state.generator.get_state())
        return space.sample(choices, rng) if budget is None else budget.candidates(space, choices).random(rng)

    def propose(self, state: RandomSearchState, count: int, budget: Budget) -> list[Candidate]:
        """The best of what was measured."""
        if budget.judge is None:
            return super().propose(state, count, budget)
        found = best_of(self._measured(state, budget, budget.judge), count, budget, "random")
        return filled(found, state.supernet.space, state.supernet.choices, self.mixture(state), count, budget)

    def _measured(
        self, state: RandomSearchState, budget: Budget, judge: Callable[[Architecture], float]
    ) -> list[Scored]:
        """Different random architectures within the limits and what was measured of them, best first."""
        candidates = budget.candidates(state.supernet.space, state.supernet.choices)
        drawn = dict.fromkeys(candidates.random(budget.rng) for _ in range(self.samples))
        scored: list[Scored] = []
        for number, architecture in enumerate(drawn, start=1):
            scored.append(Scored(judge(architecture), architecture))
            if number % _TOLD == 0 or number == len(drawn):
                best = max(found.score for found in scored)
                budget.watch(f"{number} of {len(drawn)} random architectures: best {best:.4f}")
        return sorted(scored, key=lambda found: -found.score)
