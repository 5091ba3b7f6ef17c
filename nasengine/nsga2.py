"""NSGA-II (Deb et al., IEEE Trans. Evol. Comput. 6(2), 2002) on architectures, by pymoo; needs the extra `front`.

pymoo sees the numbers of architectures in a list, one variable each; where these come from is `Candidates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling

from nasengine.architecture import Architecture
from nasengine.evolution import Candidates
from nasengine.seeding import generator

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

Objectives = Callable[[Sequence[Architecture]], Floats]
"""(N, M) numbers of N architectures, each to be minimised."""

_SEED, _DRAWS = 12, 13  # streams of random numbers, beside those of a ranking
_ANEW = 0.1  # probability that a mutant takes a choice anew, besides one


class Archive:
    """All architectures that were met, by number."""

    def __init__(self) -> None:
        self.architectures: list[Architecture] = []
        self._numbers: dict[Architecture, int] = {}

    def number(self, architecture: Architecture) -> int:
        """Of an architecture, which is added where it is new."""
        found = self._numbers.setdefault(architecture, len(self.architectures))
        if found == len(self.architectures):
            self.architectures.append(architecture)
        return found

    def at(self, numbers: NDArray[Any]) -> list[Architecture]:
        """Those of an array of numbers."""
        return [self.architectures[number] for number in numbers.astype(int).reshape(-1).tolist()]

    def column(self, architectures: Sequence[Architecture]) -> Numbers:
        """The numbers (N, 1) of architectures."""
        return np.array([[self.number(architecture)] for architecture in architectures], np.int64).reshape(-1, 1)


def evolve_front(
    candidates: Candidates,
    objectives: Objectives,
    count: int,
    *,
    population: int,
    generations: int,
    seed: int,
    first: Sequence[Architecture] = (),
    watch: Callable[[int], object] = lambda generation: None,
) -> tuple[list[Architecture], Floats]:
    """All different architectures that were evaluated, and their objectives (N, `count`).

    Args:
        candidates: where they come from; all are allowed.
        objectives: evaluates a generation at once; each architecture is evaluated once.
        count: of objectives.
        population: architectures of a generation.
        generations: with the first one.
        seed: of all random numbers.
        first: a part of the first generation.
        watch: is told the number of every generation that is done, from 1.
    """
    archive, rng = Archive(), generator(seed, _DRAWS)
    problem = _Evaluated(archive, objectives, count)
    algorithm = NSGA2(
        pop_size=population,
        sampling=_Sampled(archive, candidates, rng, first),
        crossover=_Crossed(archive, candidates, rng),
        mutation=_Mutated(archive, candidates, rng),
        eliminate_duplicates=True,
    )
    own = int(torch.randint(2**31, (), generator=generator(seed, _SEED)))
    algorithm.setup(problem, termination=("n_gen", generations), seed=own, verbose=False)
    while algorithm.has_next():
        algorithm.next()
        watch(algorithm.n_gen - 1)
    numbers = sorted(problem.values)
    return archive.at(np.array(numbers)), np.stack([problem.values[number] for number in numbers])


class _Evaluated(Problem):  # type: ignore[misc]
    """What is minimised; remembers the objectives of every number."""

    def __init__(self, archive: Archive, objectives: Objectives, count: int) -> None:
        super().__init__(n_var=1, n_obj=count)
        self.archive, self.objectives, self.values = archive, objectives, dict[int, Floats]()

    def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *arguments: object, **more: object) -> None:
        numbers = x.astype(int).reshape(-1).tolist()
        new = [number for number in dict.fromkeys(numbers) if number not in self.values]
        if new:
            found = self.objectives([self.archive.architectures[number] for number in new])
            self.values.update(zip(new, found, strict=True))
        out["F"] = np.stack([self.values[number] for number in numbers])


class _Sampled(Sampling):  # type: ignore[misc]
    """Random candidates, after those that are given."""

    def __init__(
        self, archive: Archive, candidates: Candidates, rng: torch.Generator, first: Sequence[Architecture]
    ) -> None:
        super().__init__()
        self.archive, self.candidates, self.rng, self.first = archive, candidates, rng, tuple(first)

    def _do(self, problem: Problem, n_samples: int, *arguments: object, **more: object) -> Numbers:
        given = self.first[:n_samples]
        drawn = [self.candidates.random(self.rng) for _ in range(n_samples - len(given))]
        return self.archive.column([*given, *drawn])


class _Crossed(Crossover):  # type: ignore[misc]
    """One child of two parents."""

    def __init__(self, archive: Archive, candidates: Candidates, rng: torch.Generator) -> None:
        super().__init__(n_parents=2, n_offsprings=1, prob=0.9)
        self.archive, self.candidates, self.rng = archive, candidates, rng

    def _do(self, problem: Problem, x: NDArray[Any], *arguments: object, **more: object) -> Numbers:
        pairs = zip(self.archive.at(x[0]), self.archive.at(x[1]), strict=True)
        children = [self.candidates.child(one, other, self.rng) for one, other in pairs]
        return self.archive.column(children)[None]


class _Mutated(Mutation):  # type: ignore[misc]
    """Mutants, of a share of the children."""

    def __init__(self, archive: Archive, candidates: Candidates, rng: torch.Generator) -> None:
        super().__init__(prob=0.9)
        self.archive, self.candidates, self.rng = archive, candidates, rng

    def _do(self, problem: Problem, x: NDArray[Any], *arguments: object, **more: object) -> Numbers:
        return self.archive.column([self.candidates.mutant(a, _ANEW, self.rng) for a in self.archive.at(x)])
