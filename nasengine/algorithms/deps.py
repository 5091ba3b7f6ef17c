"""DepS: delayed epsilon-shrinking of an elastic supernet; with other settings once-for-all, and the sandwich rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nasengine.algorithm import Algorithm, StepInfo, WeightSettings, optimise
from nasengine.architecture import Architecture
from nasengine.evolution import Budget, EvolutionSettings, Scored, evolve
from nasengine.layers import put
from nasengine.proposals import Candidate, best_of, filled
from nasengine.seeding import generator
from nasengine.settings import group, setting, validate
from nasengine.sharding import apart, shard
from nasengine.shrinking import Stage, stage_at
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Batch
from nasengine.units import importance, order_by, permute, permute_like, sortable


@dataclass(frozen=True, kw_only=True)
class ShrinkingWeights(WeightSettings):
    """Descent of the supernet's weights, at the values of DepS for CIFAR (cosine from 0.1, Nesterov, no clipping)."""

    lr: float = setting(0.1, "learning rate at the start", above=0)
    lr_min: float = setting(0.0, "learning rate at the end of the cosine", low=0)
    weight_decay: float = setting(3e-5, "weight decay, in sgd part of the gradient", low=0)
    clip: float = setting(0.0, "largest norm of the gradient, 0 for no limit", low=0)
    nesterov: bool = setting(True, "sgd: momentum of Nesterov's form")


@dataclass(kw_only=True)
class DepSState:
    """All that changes while a supernet shrinks; the teacher counts once it is frozen."""

    full: Supernet
    teacher: Supernet | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    frozen: bool
    sorted: int
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class DepS(Algorithm[DepSState]):
    """Delayed epsilon-shrinking: the full network trains alone first, then with its subnets at a rising rate.

    With eta(t) the cosine and S = steps, T_fm = warmup * S, T_eps = ramp * S:

        G = grad L(max) + eps_t * sum_s grad D(s, max),    D the cross entropy to the detached outputs of the full net
        eps_t = 0                                                  t < T_fm - T_eps
        eps_t = (t - T_fm + T_eps + 1) / T_eps * eta(T_fm) / eta(t)    T_fm - T_eps <= t < T_fm
        eps_t = 1                                                  T_fm <= t

    so that the rate of the subnets, eps_t * eta(t), rises linearly to eta(T_fm). Each step trains `subnets` networks on
    one batch, by the sandwich rule the full one, the smallest one and random ones. Where subnets begin, units are
    sorted by importance, so that slices keep the important ones. The answer is found by evolution on the measured
    accuracy of inherited, recalibrated weights, within the limits.

    Trained by several processes (`nasengine.sharding`) each step has the gradient of one process. With `spread` each
    draws random subnets of its own: as many more a step as there are processes, each learning from one shard of the
    batch and normalised by it.

    By settings: the plain sandwich rule (BigNAS, arXiv:2003.11142) is `warmup=0 ramp=0 sort=false`; progressive
    shrinking (once-for-all, arXiv:1908.09791) is `shrinking=progressive teacher=frozen sampling=random hard=1 ramp=0`:
    after the warm-up kernels and operations, then depths, then widths open, option by option, and random open subnets
    learn from labels and a frozen full network.

    On cells, the full network is all operations on all edges with equal weights; subnets keep one.

    Differs from the paper: its text was not at hand, the equations follow its public code, where the ramp ends at the
    rate one epoch after T_fm: at 0.986 of the rates here in its 270 epochs, then with a jump to 1. One cosine runs over
    all stages of progressive shrinking, whose numbers of subnets a step are 1, 2 and 4. Norms and biases decay as well.
    Passes of subnets leave the batch-norm statistics alone. No label smoothing unless the task's loss has it.

    References: Annavajjala et al., ECCV 2024, arXiv:2407.06167.
    """

    name: ClassVar[str] = "deps"

    warmup: float = setting(0.5, "share of the steps after which subnets train at the full rate", low=0, high=1)
    ramp: float = setting(
        0.02, "share of the steps over which their rate rises, the last ones of the warm-up", low=0, high=1
    )
    shrinking: Literal["delayed", "progressive"] = setting("delayed", "all subnets at once, or kernel, depth, width")
    sampling: Literal["sandwich", "random"] = setting("sandwich", "full, smallest and random networks, or random ones")
    subnets: int = setting(4, "delayed: networks a step, in a sandwich the full and the smallest one among them", low=2)
    teacher: Literal["full", "frozen", "none"] = setting(
        "full", "who teaches: the full network of now, or of the switch"
    )
    hard: float = setting(0.0, "weight of the true labels in the loss of subnets (1 if there is no teacher)", low=0)
    sort: bool = setting(True, "sort units by importance where subnets begin")
    spread: bool = setting(False, "with several processes: each draws random subnets of its own")
    weights: ShrinkingWeights = group(ShrinkingWeights, "optimiser of the weights")
    evolution: EvolutionSettings = group(EvolutionSettings, "how the architecture is found in the supernet")

    def __post_init__(self) -> None:
        validate(self, "algo")

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> DepSState:
        return DepSState(
            full=supernet,
            teacher=copy.deepcopy(supernet) if self.teacher == "frozen" else None,
            optimizer=self.weights.make(supernet.parameters()),
            generator=generator,
            frozen=False,
            sorted=0,
            step=0,
            steps=steps,
        )

    def step(self, state: DepSState, train: Batch, valid: Batch) -> StepInfo:
        del valid
        supernet, epsilon = state.full, self.epsilon(state.step, state.steps)
        stage = self._switched(state) if epsilon > 0 else None
        first: StepInfo | None = None
        if stage is None or self.sampling == "sandwich":
            evaluation = supernet.evaluate(train, supernet.full())
            evaluation.loss.backward()  # type: ignore[no-untyped-call]
            first = StepInfo(evaluation.loss.detach(), evaluation.outputs)
        if stage is not None:
            soft = self._soft(state, train, first)
            weights = dict(supernet.named_parameters())
            for architecture in self._subnets(state, stage):
                with apart() if self.spread else nullcontext():
                    inside = supernet.forward_at(train.inputs, supernet.hard(architecture), weights)
                    loss = self._loss(supernet, inside, train.targets, soft)
                    (epsilon * loss).backward()  # type: ignore[no-untyped-call]
                first = first or StepInfo(loss.detach(), inside.detach())
        optimise(state.optimizer, self.weights.rate(state.step, state.steps), self.weights.clip)
        state.step += 1
        assert first is not None
        return first

    def epsilon(self, step: int, steps: int) -> float:
        """The rate of the subnets as a share of that of the full network."""
        switch, length = round(self.warmup * steps), min(round(self.ramp * steps), round(self.warmup * steps))
        if step >= switch:
            return 1.0
        if step < switch - length:
            return 0.0
        risen = (step - switch + length + 1) / length
        return risen * self.weights.rate(switch, steps) / self.weights.rate(step, steps)

    def mixture(self, state: DepSState) -> Mixture:
        return state.full.full()

    def supernet(self, state: DepSState) -> Supernet:
        return state.full

    def derive(self, state: DepSState, budget: Budget | None = None) -> Architecture:
        """The best by measured accuracy; where nothing may be measured, the smallest."""
        space, choices = state.full.space, state.full.choices
        if budget is None or budget.judge is None:
            return space.smallest(choices) if budget is None else budget.candidates(space, choices).start
        return self._evolved(state, budget, budget.judge)[0].architecture

    def propose(self, state: DepSState, count: int, budget: Budget) -> list[Candidate]:
        """The front of the evolution, and the best of what it measured besides."""
        if budget.judge is None:
            return super().propose(state, count, budget)
        found = best_of(self._evolved(state, budget, budget.judge), count, budget)
        return filled(found, state.full.space, state.full.choices, self.mixture(state), count, budget)

    def _evolved(self, state: DepSState, budget: Budget, judge: Callable[[Architecture], float]) -> list[Scored]:
        """What the evolution measures, best first."""

        def watch(generation: int, best: Scored) -> None:
            budget.watch(f"generation {generation} of {self.evolution.generations}: best {best.score:.4f}")

        space, choices = state.full.space, state.full.choices
        candidates = budget.candidates(space, choices)
        return evolve(candidates, judge, self.evolution, budget.rng, [space.largest(choices)], watch)

    def indicators(self, state: DepSState) -> dict[str, float]:
        return {"epsilon": self.epsilon(max(0, state.step - 1), state.steps)}

    def _switched(self, state: DepSState) -> Stage:
        """The stage of now; freezes the teacher and sorts the units where one begins."""
        begin = round(self.warmup * state.steps)
        progress = max(0.0, (state.step - begin) / max(1, state.steps - begin))
        stage = stage_at(state.full, self.shrinking, progress, self.subnets)
        if self.sort:
            while state.sorted < stage.sortings:
                _sort(state, state.sorted)
                state.sorted += 1
        if state.teacher is not None and not state.frozen:
            state.teacher.load_state_dict(state.full.state_dict())
            state.frozen = True
        return stage

    def _subnets(self, state: DepSState, stage: Stage) -> list[Architecture]:
        rng = state.generator
        if self.spread:  # one number a step, so that the state fits any number of processes
            rng = generator(int(torch.randint(2**31, (), generator=rng)), shard())
        if self.sampling == "random":
            return [stage.random(state.full, rng) for _ in range(stage.subnets)]
        rest = max(0, stage.subnets - 2)
        return [stage.smallest(state.full, rng), *(stage.random(state.full, rng) for _ in range(rest))]

    def _soft(self, state: DepSState, train: Batch, full: StepInfo | None) -> Tensor | None:
        """Outputs of the teacher, without gradient; None without one."""
        if self.teacher == "none":
            return None
        if self.teacher == "full" and full is not None:
            return full.train_outputs
        teacher = state.full if state.teacher is None else state.teacher
        with torch.no_grad():
            return teacher.forward_at(train.inputs, teacher.full(), dict(teacher.named_parameters()))

    def _loss(self, supernet: Supernet, outputs: Tensor, targets: Tensor, soft: Tensor | None) -> Tensor:
        if soft is None:
            return (self.hard or 1.0) * supernet.loss(outputs, targets)
        taught = distillation(outputs, targets, soft)
        return taught + self.hard * supernet.loss(outputs, targets) if self.hard else taught


def distillation(outputs: Tensor, targets: Tensor, soft: Tensor) -> Tensor:
    """Cross entropy to the teacher's probabilities; where targets are not classes, squared distance to its outputs."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, soft)
    return F.cross_entropy(outputs, soft.softmax(1))


def _sort(state: DepSState, before: int) -> None:
    """Sorts units by importance within the widths that are open already, weights and momentum alike."""
    network = state.full.network
    orders = {
        size: order_by(importance(network, size), size.values[max(0, len(size.values) - 1 - before) : -1])
        for size in sortable(network)
    }
    for key in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
        known = {
            name: state.optimizer.state[parameter][key]
            for name, parameter in network.named_parameters()
            if state.optimizer.state.get(parameter, {}).get(key) is not None
        }
        moved = permute_like(network, known, orders) if known else {}
        for name, buffer in known.items():
            put(buffer, moved[name])
    permute(network, orders)
