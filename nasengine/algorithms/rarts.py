"""RARTS: relaxed architecture search on a single level."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nasengine.algorithm import Algorithm, AlphaSettings, StepInfo, WeightSettings, descend, priced
from nasengine.alphas import Alphas, detached
from nasengine.architecture import Architecture
from nasengine.evolution import Budget
from nasengine.gates import GateSettings, UnitGates, derive_widths, gate_sizes
from nasengine.settings import group, setting, validate
from nasengine.supernet import Mixture, Supernet
from nasengine.task import Batch
from nasengine.virtual import parameters_of


@dataclass(kw_only=True)
class RARTSState:
    """All that changes in a search by RARTS: two copies of the weights, one set of alphas."""

    train_copy: Supernet  # w
    valid_copy: Supernet  # y
    alphas: Alphas
    gates: UnitGates
    train_optimizer: torch.optim.Optimizer
    valid_optimizer: torch.optim.Optimizer
    alpha_optimizer: torch.optim.Optimizer
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class RARTS(Algorithm[RARTSState]):
    """RARTS: two copies of the weights agree on one architecture; first derivatives only.

    L(y, w, alpha) = L_val(y, alpha) + lam * L_train(w, alpha) + beta/2 * |y - w|^2

    One sweep by Gauss-Seidel, each block by its optimiser:

        w <- w - eta_w * (lam * grad_w L_train(w, alpha) + beta * (w - y))
        y <- y - eta_y * (grad_y L_val(y, alpha) + beta * (y - w))                              at the new w
        alpha <- alpha - eta_a * (lam * grad_alpha L_train(w, alpha) + grad_alpha L_val(y, alpha))    at the new w, y

    `sweep=exact` is this, with 4 backward passes. `sweep=stale` takes the gradients of the weights and of alpha from
    the same two passes, so that alpha's are one step stale in w and y: 2 backward passes, against 5 of second-order
    DARTS.

    Width search (`widths=gates`): alpha holds one gate a unit of every size as well; mu * P(gates) joins L, and one
    ranking of all gates over the network gives the widths. Else sizes are softmax-weighted masks over their options.
    Where there are limits, the price of the expected cost joins L.

    The penalty couples stably while beta * eta_y < 2; lam scales the learning rate of w. The validation images train
    y, so the validation accuracy during the search is not a held-out number.

    Differs from the paper: its text was not at hand; the Lagrangian, the side of lam and the order of the sweep
    follow its abstract and its analytically solvable model. The defaults of lam and beta are ours. Alpha's passes
    leave the batch-norm statistics alone.

    References: Xue, Qi, Xin, IEEE Access 2022, arXiv:2008.03901.
    """

    name: ClassVar[str] = "rarts"

    lam: float = setting(1.0, "weight of the training loss", low=0)
    beta: float = setting(1.0, "strength of the penalty on the distance of the two copies", low=0)
    sweep: Literal["exact", "stale"] = setting("exact", "exact: 4 passes; stale: 2 passes, alpha one step behind")
    relaxation: Literal["softmax", "identity"] = setting("softmax", "how alphas become weights over the options")
    widths: Literal["options", "gates"] = setting("options", "search widths by weights of their options, or by gates")
    weights: WeightSettings = group(WeightSettings, "optimiser of both copies of the weights")
    alphas: AlphaSettings = group(AlphaSettings, "optimiser of the alphas")
    gates: GateSettings = group(GateSettings, "the gates, if widths=gates")

    def __post_init__(self) -> None:
        validate(self, "algo")

    def init(self, supernet: Supernet, generator: torch.Generator, steps: int) -> RARTSState:
        like = next(supernet.parameters())
        gates = UnitGates(gate_sizes(supernet, self.widths == "gates"), self.gates, like)
        choices = {label: choice for label, choice in supernet.choices.items() if label not in gates.sizes}
        alphas = Alphas(choices, generator, self.alphas.std, like)
        other = copy.deepcopy(supernet)
        return RARTSState(
            train_copy=supernet,
            valid_copy=other,
            alphas=alphas,
            gates=gates,
            train_optimizer=self.weights.make(supernet.parameters()),
            valid_optimizer=self.weights.make(other.parameters()),
            alpha_optimizer=self.alphas.make(alphas.parameters()),
            step=0,
            steps=steps,
        )

    def step(self, state: RARTSState, train: Batch, valid: Batch) -> StepInfo:
        exact = self.sweep == "exact"
        w, y = (list(parameters_of(copy).values()) for copy in (state.train_copy, state.valid_copy))
        alphas, gates = list(state.alphas.parameters()), list(state.gates.parameters())
        shared = [*alphas, *gates]
        rate = self.weights.rate(state.step, state.steps)
        mixture = detached(self._searched(state)) if exact else self._searched(state)

        train_pass = state.train_copy.evaluate(train, mixture)
        g_w, a_train = _split(self.lam * train_pass.loss, w, [] if exact else shared)
        descend(state.train_optimizer, w, self._pulled(g_w, w, y), rate, self.weights.clip)

        if not exact:
            mixture = self._searched(state)
        valid_pass = state.valid_copy.evaluate(valid, mixture)
        g_y, a_valid = _split(valid_pass.loss, y, [] if exact else shared)
        descend(state.valid_optimizer, y, self._pulled(g_y, y, w), rate, self.weights.clip)

        if exact:
            a_train = self._alpha_gradients(state, state.train_copy, train, self.lam)
            a_valid = self._alpha_gradients(state, state.valid_copy, valid, 1.0)
        g_a = [t + v for t, v in zip(a_train, a_valid, strict=True)]
        g_a = priced(g_a, state.train_copy, self._searched(state), shared)
        descend(state.alpha_optimizer, alphas, g_a[: len(alphas)], rate=None, clip=0)
        state.gates.descend(g_a[len(alphas) :])
        state.step += 1
        return StepInfo(train_pass.loss.detach(), train_pass.outputs, valid_pass.loss.detach(), valid_pass.outputs)

    def _searched(self, state: RARTSState) -> Mixture:
        return {**state.alphas.mixture(self.relaxation), **state.gates.mixture()}

    def mixture(self, state: RARTSState) -> Mixture:
        return {**detached(state.alphas.mixture(self.relaxation)), **state.gates.whole()}

    def supernet(self, state: RARTSState) -> Supernet:
        return state.gates.sculpted(state.train_copy)

    def derive(self, state: RARTSState, budget: Budget | None = None) -> Architecture:
        alphas = detached(state.alphas.mixture(self.relaxation))
        return derive_widths(state.train_copy, alphas, state.gates, budget)

    def lagrangian(self, state: RARTSState, train: Batch, valid: Batch) -> Tensor:
        """L(y, w, alpha) on two batches, with the penalty on the gates and the price, as a 0-dim tensor."""
        with torch.no_grad():
            mixture = detached(self._searched(state))
            w, y = parameters_of(state.train_copy), parameters_of(state.valid_copy)
            distance = sum(((y[name] - w[name]) ** 2).sum() for name in w)
            loss = state.valid_copy.evaluate(valid, mixture, y).loss
            loss = loss + self.lam * state.train_copy.evaluate(train, mixture, w).loss + self.beta / 2 * distance
            price = state.train_copy.price(mixture) if state.train_copy.price is not None else 0.0
            return loss + state.gates.penalty() + price

    def _pulled(self, gradients: Iterable[Tensor], here: Sequence[Tensor], there: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            apart = torch._foreach_sub(list(here), list(there))
            return list(torch._foreach_add(list(gradients), apart, alpha=self.beta))

    def _alpha_gradients(self, state: RARTSState, copy: Supernet, batch: Batch, scale: float) -> list[Tensor]:
        weights = {name: weight.detach() for name, weight in parameters_of(copy).items()}
        loss = scale * copy.evaluate(batch, self._searched(state), weights).loss
        shared = [*state.alphas.parameters(), *state.gates.parameters()]
        return list(torch.autograd.grad(loss, shared, materialize_grads=True))


def _split(loss: Tensor, weights: Sequence[Tensor], alphas: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    gradients = list(torch.autograd.grad(loss, [*weights, *alphas], materialize_grads=True))
    return gradients[: len(weights)], gradients[len(weights) :]
