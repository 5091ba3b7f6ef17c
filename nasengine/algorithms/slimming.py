"""Slimming: widths by one ranking of trained scores, as SiDT and network slimming."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nasengine.algorithm import Algorithm, StepInfo, WeightSettings, descend
from nasengine.alphas import detached
from nasengine.architecture import Architecture
from nasengine.elastic import Size
from nasengine.errors import SettingError
from nasengine.evolution import Budget
from nasengine.gates import GateSettings, OptionGates, UnitGates, derive_scores, gate_sizes, sort_units
from nasengine.layers import put
from nasengine.settings import group, setting, validate
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Batch
from nasengine.units import norm_scales


@dataclass(kw_only=True)
class SlimmingState:
    """All that changes while the full network and its scores train."""

    full: Supernet
    gates: UnitGates
    operations: OptionGates
    optimizer: torch.optim.Optimizer
    auxiliary: list[Tensor]
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Slimming(Algorithm[SlimmingState]):
    """Slimming: the full network trains with one score a unit under a sparsity penalty; one ranking removes units.

    min_{W, s} L_train(W, s) + mu * sum_layers P(s)                                                  (S1)
    a unit is kept if its |s| is above the (p N)-th smallest of all N units of the network           (S2)
    the others are cut out of the weights, the scores folded into what is left; fine-tune it         (S3)

    `on=gates`: s multiplies every unit where it is read (SiDT: embedding dimensions, widths of queries, keys and
    values, hidden units of the MLPs, heads). `on=norms`: s are the scales of the batch and layer norms, of several
    norms on one size the mean (network slimming). Choices between operations get one score an option, which weighs its
    output, and keep the strongest (direct sparse optimization). Any penalty, by subgradient, proximal step, relaxed
    variable splitting or the two variables of proximal network slimming (`algo.gates.sparsity`). What has no scores,
    such as kernels, depth and resolution, stays at its largest. 'nasengine train RUN --inherit' fine-tunes the small
    network.

    Differs from the papers: SiDT's text was not at hand, (S1) to (S3) follow its abstract and vision transformer
    pruning; all heads of a layer share the scores of their width; counts are rounded to the options of the space, never
    below the smallest. In proximal network slimming a unit goes if its sparse copy is zero, not its scale. Scales of
    norms start at 1, not at 0.5.

    References: Xue, Yang, Qi, Xin, arXiv:2204.07722 (SiDT); Zhu et al., arXiv:2104.08500; Liu et al., arXiv:1708.06519
    (network slimming); Zhang et al., arXiv:1811.01567 (operations); Bui et al., arXiv:2010.01242, arXiv:2307.00684;
    Dinh, Xin, arXiv:1812.05719.
    """

    name: ClassVar[str] = "slimming"

    on: Literal["gates", "norms"] = setting("gates", "scores: gates of their own, or the scales of the norms")
    weights: WeightSettings = group(WeightSettings, "optimiser of the weights")
    gates: GateSettings = group(GateSettings, "the scores: their descent, their penalty, what is removed")

    def __post_init__(self) -> None:
        validate(self, "algo")

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> SlimmingState:
        like, sizes = next(supernet.parameters()), gate_sizes(supernet, self.on == "gates")
        scales = self._scales(supernet)
        if self.on == "norms" and not scales:
            name = supernet.space.name
            raise SettingError(
                f"algo.on=norms needs widths with norms, but space {name!r} has none; set algo.on=gates."
            )
        return SlimmingState(
            full=supernet,
            gates=UnitGates(sizes, self.gates, like),
            operations=OptionGates(supernet.choices, self.gates, generator, like),
            auxiliary=self.gates.sparsity.start(scales),
            optimizer=self.weights.make(supernet.parameters()),
            step=0,
            steps=steps,
        )

    def step(self, state: SlimmingState, train: Batch, valid: Batch) -> StepInfo:
        del valid
        supernet, rate, sparsity = state.full, self.weights.rate(state.step, state.steps), self.gates.sparsity
        evaluation = supernet.evaluate(train, self._trained(state))
        weights, gates = list(supernet.parameters()), list(state.gates.parameters())
        scores = [*gates, *state.operations.parameters()]
        slopes = list(torch.autograd.grad(evaluation.loss, [*weights, *scores], materialize_grads=True))
        scales = self._scales(supernet)
        places = [next(i for i, weight in enumerate(weights) if weight is scale) for scale in scales]
        penalised = sparsity.gradient(scales, [slopes[place] for place in places], state.auxiliary)
        for place, slope in zip(places, penalised, strict=True):
            slopes[place] = slope
        descend(state.optimizer, weights, slopes[: len(weights)], rate, self.weights.clip)
        moved, state.auxiliary = sparsity.after(scales, state.auxiliary, rate)
        for scale, value in zip(scales, moved, strict=True):
            put(scale, value)
        state.gates.descend(slopes[len(weights) :][: len(gates)])
        state.operations.descend(slopes[len(weights) + len(gates) :])
        state.step += 1
        return StepInfo(evaluation.loss.detach(), evaluation.outputs)

    def _trained(self, state: SlimmingState) -> Mixture:
        return {**state.full.full(), **state.operations.mixture(), **state.gates.mixture()}

    def mixture(self, state: SlimmingState) -> Mixture:
        return {**state.full.full(), **detached(state.operations.mixture()), **state.gates.whole()}

    def supernet(self, state: SlimmingState) -> Supernet:
        if self.on == "gates":
            return state.gates.sculpted(state.full)
        result = copy.deepcopy(state.full)
        for scale, value in zip(self._scales(result), self._deployed(state), strict=True):
            put(scale, value)
        return sort_units(result, self.scores(state))

    def derive(self, state: SlimmingState, budget: Budget | None = None) -> Architecture:
        return derive_scores(state.full, state.operations.sizes(), self.scores(state), self.gates.remove, budget)

    def indicators(self, state: SlimmingState) -> dict[str, float]:
        scores = [*self.scores(state).values(), *state.operations.sizes().values()]
        everything = torch.cat([score.abs() for score in scores]) if scores else torch.zeros(1)
        return {"score": float(everything.mean()), "zero_scores": float((everything == 0).double().mean())}

    def scores(self, state: SlimmingState) -> Mapping[Size, Tensor]:
        """The scores of the units by size, (units,) each, without gradient."""
        if self.on == "gates":
            return state.gates.by_size()
        by_size = norm_scales(state.full.network, gate_sizes(state.full, True).values())
        values = iter(self._deployed(state))
        return {size: torch.stack([next(values).abs() for _ in norms]).mean(0) for size, norms in by_size.items()}

    def _deployed(self, state: SlimmingState) -> list[Tensor]:
        return self.gates.sparsity.deployed(self._scales(state.full), state.auxiliary)

    def _scales(self, supernet: Supernet) -> list[Tensor]:
        if self.on == "gates":
            return []
        found = norm_scales(supernet.network, gate_sizes(supernet, True).values())
        return [scale for scales in found.values() for scale in scales]
