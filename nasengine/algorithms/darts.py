"""DARTS: differentiable architecture search as a bilevel problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nasengine.algorithm import Algorithm, AlphaSettings, StepInfo, WeightSettings, descend, priced
from nasengine.alphas import Alphas, detached
from nasengine.architecture import Architecture
from nasengine.bilevel import HYPERGRADIENTS, VirtualStep
from nasengine.errors import SettingError
from nasengine.evolution import Budget
from nasengine.gates import GateSettings, UnitGates, derive_widths, gate_sizes
from nasengine.settings import group, setting, validate
from nasengine.supernet import Mixture, Supernet, Weights
from nasengine.task import Batch
from nasengine.virtual import parameters_of


@dataclass(kw_only=True)
class DARTSState:
    """All that changes in a search by DARTS."""

    supernet: Supernet
    alphas: Alphas
    gates: UnitGates
    weight_optimizer: torch.optim.Optimizer
    alpha_optimizer: torch.optim.Optimizer
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class DARTS(Algorithm[DARTSState]):
    """DARTS: alphas learn on the validation loss, weights on the training loss, in turns.

    min_alpha L_val(w*(alpha), alpha)  subject to  w*(alpha) = argmin_w L_train(w, alpha)        (eqs. 3, 4)

    Each step: alpha on the hypergradient (`order`: first, second by finite differences, or exact), then w by one step
    of momentum descent. First order costs 2 backward passes a step, second order 5.

    Sizes are softmax-weighted masks over their options, or with `widths=gates` one gate a unit that descends on the
    same hypergradient and a sparsity penalty. Where there are limits, the price of the expected cost is added to L_val.

    Differs from the paper: validation passes leave the batch-norm statistics alone; the cosine falls at every step.

    References: Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055.
    """

    name: ClassVar[str] = "darts"

    order: Literal["first", "second", "exact"] = setting("first", "how the alphas look through the weight step")
    relaxation: Literal["softmax", "identity"] = setting("softmax", "how alphas become weights over the options")
    widths: Literal["options", "gates"] = setting("options", "search widths by weights of their options, or by gates")
    weights: WeightSettings = group(WeightSettings, "optimiser of the weights")
    alphas: AlphaSettings = group(AlphaSettings, "optimiser of the alphas")
    gates: GateSettings = group(GateSettings, "the gates, if widths=gates")

    def __post_init__(self) -> None:
        validate(self, "algo")
        if self.order != "first" and self.weights.optimizer != "sgd":
            raise SettingError(
                f"algo.order={self.order} looks through a step of sgd, but algo.weights.optimizer is "
                f"{self.weights.optimizer}; set sgd, or algo.order=first."
            )
        if self.order != "first" and self.weights.nesterov:
            raise SettingError(
                f"algo.order={self.order} looks through a step without Nesterov's momentum, but algo.weights.nesterov "
                "is true; set it to false, or algo.order=first."
            )

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> DARTSState:
        if self.order == "second" and supernet.precision != "float32":
            raise SettingError(
                "algo.order=second needs weights that differ by less than bfloat16 tells apart, but search.precision "
                f"is {supernet.precision}; set algo.order=exact or first, or search.precision=float32."
            )
        like = next(supernet.parameters())
        gates = UnitGates(gate_sizes(supernet, self.widths == "gates"), self.gates, like)
        choices = {label: choice for label, choice in supernet.choices.items() if label not in gates.sizes}
        alphas = Alphas(choices, generator, self.alphas.std, like)
        return DARTSState(
            supernet=supernet,
            alphas=alphas,
            gates=gates,
            weight_optimizer=self.weights.make(supernet.parameters()),
            alpha_optimizer=self.alphas.make(alphas.parameters()),
            step=0,
            steps=steps,
        )

    def step(self, state: DARTSState, train: Batch, valid: Batch) -> StepInfo:
        rate = self.weights.rate(state.step, state.steps)
        supernet, weights = state.supernet, parameters_of(state.supernet)
        alphas, gates = list(state.alphas.parameters()), list(state.gates.parameters())
        hypergradient = HYPERGRADIENTS[self.order](
            lambda at: supernet.evaluate(train, self._searched(state), at),
            lambda at: supernet.evaluate(valid, self._searched(state), at),
            weights,
            [*alphas, *gates],
            VirtualStep(rate, self.weights.momentum, self.weights.weight_decay, _momentum(state, weights)),
        )
        slopes = priced(hypergradient.gradients, supernet, self._searched(state), [*alphas, *gates])
        descend(state.alpha_optimizer, alphas, slopes[: len(alphas)], rate=None, clip=0)
        state.gates.descend(slopes[len(alphas) :])

        evaluation = supernet.evaluate(train, detached(self._searched(state)))
        gradients = torch.autograd.grad(evaluation.loss, list(weights.values()), materialize_grads=True)
        descend(state.weight_optimizer, list(weights.values()), gradients, rate, self.weights.clip)
        state.step += 1
        valid_loss, valid_outputs = hypergradient.valid
        return StepInfo(evaluation.loss.detach(), evaluation.outputs, valid_loss, valid_outputs)

    def _searched(self, state: DARTSState) -> Mixture:
        return {**state.alphas.mixture(self.relaxation), **state.gates.mixture()}

    def mixture(self, state: DARTSState) -> Mixture:
        return {**detached(state.alphas.mixture(self.relaxation)), **state.gates.whole()}

    def supernet(self, state: DARTSState) -> Supernet:
        return state.gates.sculpted(state.supernet)

    def derive(self, state: DARTSState, budget: Budget | None = None) -> Architecture:
        alphas = detached(state.alphas.mixture(self.relaxation))
        return derive_widths(state.supernet, alphas, state.gates, budget)


def _momentum(state: DARTSState, weights: Weights) -> dict[str, Tensor]:
    optimizer = state.weight_optimizer.state
    buffers = {
        name: optimizer[weight].get("momentum_buffer") for name, weight in weights.items() if weight in optimizer
    }
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}
