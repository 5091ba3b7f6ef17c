"""Weighted sums of operations whose last batch norms are not applied one by one, but within the sum.

sum_k w_k * norm_k(z_k) = sum_k s_k * (z_k - mean_k) + d  with  s_k = w_k * gamma_k / sqrt(var_k + eps)  and
d = sum_k w_k * beta_k, per channel: what a mixture of operations (arXiv:1806.09055, eq. 2) costs is then one pass over
the values, forward and backward, and nothing but the values is kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from nasengine import launch
from nasengine.launch import Term
from nasengine.separable import Norm, Normalizable, dense, is_fast, is_ordinary, normalized
from nasengine.supernet import MixedOp, Shared, Zero, decided, once_a_call


class Unnormed(NamedTuple):
    """What an operation gives before its last batch norm, shape (N, C, H, W), with its moments per channel, shape (C,).

    Without a batch norm there are no moments. The variance is the biased one.
    """

    values: Tensor
    module: nn.BatchNorm2d | None = None
    mean: Tensor | None = None
    var: Tensor | None = None

    def norm(self) -> Norm | None:
        """The batch norm by the moments that it takes: in training these, else its running ones."""
        module, mean, var = self.module, self.mean, self.var
        if module is None:
            return None
        if not module.training and module.running_mean is not None:
            mean, var = module.running_mean, module.running_var
        return Norm(cast(Tensor, mean), cast(Tensor, var), module.weight, module.bias, module.eps)


Row = tuple[Tensor, Sequence[Unnormed | None]]
"""Weights, shape (options,), with what each of them multiplies; None is zeros."""


@runtime_checkable
class EndsInNorm(Protocol):
    """A module that can leave its last batch norm to others."""

    def unnormed(self, x: Tensor, statistics: Statistics) -> Unnormed: ...


@dataclass
class Statistics:
    """Moments of batches, to be taken into the running ones of their norms all at once."""

    found: list[tuple[nn.BatchNorm2d, Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, term: Unnormed) -> None:
        """Notes the moments of a term, if its norm keeps any. Raises ValueError for one value a channel, as torch."""
        norm, mean, var = term.module, term.mean, term.var
        if norm is None or mean is None or var is None or not norm.training:
            return
        if term.values.numel() == len(mean):
            norm(term.values)  # refuses it
        if norm.track_running_stats:
            self.found.append((norm, mean.detach(), var.detach(), term.values.numel() // len(mean)))

    def noted(self, found: Normalizable, module: nn.BatchNorm2d) -> Unnormed:
        """What is to be normed by a module, with its moments noted."""
        term = Unnormed(found.output, module, found.mean, found.var)
        self.add(term)
        return term

    @torch.no_grad()
    def keep(self) -> None:
        """Moves the running moments as `torch.nn.BatchNorm2d` does; the variance is the unbiased one."""
        if not self.found:
            return
        torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm, *_ in self.found], 1)
        for factor, found in groupby(self.found, key=lambda kept: _factor(kept[0])):
            norms, means, variances, counts = zip(*found, strict=True)
            running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
            unbiased = torch._foreach_mul(variances, [count / (count - 1) for count in counts])
            torch._foreach_lerp_(running, [*means, *unbiased], factor)
        self.found.clear()


def _factor(norm: nn.BatchNorm2d) -> float:
    """How far the running moments move; without a momentum they are means over all batches so far."""
    return 1 / int(cast(Tensor, norm.num_batches_tracked)) if norm.momentum is None else float(norm.momentum)


def summed(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor:
    """sum_i modules[i](inputs[i]); soft mixtures as one weighted sum of all their options, where loops are compiled."""
    mixtures = [module for module in modules if isinstance(module, MixedOp)]
    weights = [decided(mixture.choice.label) for mixture in mixtures]
    soft = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(soft) < len(modules) or not is_fast(inputs[0]):
        outputs = [module(x) for module, x in zip(modules, inputs, strict=True)]
        total: Tensor = sum(outputs[1:], start=outputs[0])
        return total
    statistics = Statistics()
    rows = [
        (row, [None if isinstance(option, Zero) else unnormed(option, x, statistics) for option in mixture.options])
        for row, mixture, x in zip(soft, mixtures, inputs, strict=True)
    ]
    statistics.keep()
    return mixed(rows)


def unnormed(module: nn.Module, x: Tensor, statistics: Statistics) -> Unnormed:
    """What a module gives before its last batch norm, if it ends in one."""
    if isinstance(module, Shared):
        # x is kept with what it gave: while it lives, nothing else has its id
        return once_a_call((id(module), id(x)), lambda: (x, unnormed(module.module, x, statistics)))[1]
    if isinstance(module, EndsInNorm):
        return module.unnormed(x, statistics)
    *before, last = module if isinstance(module, nn.Sequential) else [module]
    if not isinstance(last, nn.BatchNorm2d):
        return Unnormed(module(x))
    for child in before:
        x = child(x)
    return measured(x, last, statistics)


def measured(values: Tensor, module: nn.BatchNorm2d, statistics: Statistics) -> Unnormed:
    """Values with their moments, which are noted; without them where the norm takes its running ones."""
    if not module.training and module.running_mean is not None:
        return Unnormed(values, module)
    term = Unnormed(values, module, *moments(values))
    statistics.add(term)
    return term


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of values (N, C, H, W)."""
    if not is_fast(values):
        return _plain_moments(values)
    apply: Callable[..., tuple[Tensor, Tensor]] = _Moments.apply
    return apply(values)


def _plain_moments(values: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    return mean, var


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = launch.moments(dense(values))
        ctx.save_for_backward(values, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        """d mean = 1 / P and d var = 2 (value - mean) / P for each of P pixels."""
        values, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = (grad_mean, grad_var)
            found: Tensor = torch.autograd.grad(_plain_moments(values), values, grads, create_graph=True)[0]
            return found
        share = values.new_full((1,), len(mean) / values.numel())
        return launch.mix([Term(dense(values), share, 0, mean, None, 2 * grad_var, grad_mean.contiguous())])


class _Place(NamedTuple):
    row: int
    option: int
    eps: float


def mixed(rows: Sequence[Row]) -> Tensor:
    """The sum of all weights times the normed values of their terms, shape (N, C, H, W)."""
    places: list[_Place] = []
    tensors: list[Tensor | None] = [weights for weights, _ in rows]
    for row, (_, terms) in enumerate(rows):
        for option, term in enumerate(terms):
            if term is not None:
                norm = term.norm()
                places.append(_Place(row, option, 0.0 if norm is None else norm.eps))
                tensors += (term.values, *((None,) * 4 if norm is None else norm[:4]))
    if not (is_fast(cast(Tensor, tensors[len(rows)])) and all(t is None or is_ordinary(t) for t in tensors)):
        return _plain_mixed(places, tensors)
    apply: Callable[..., Tensor] = _Mixed.apply
    return apply(tuple(places), *tensors)


def _terms(places: Sequence[_Place], tensors: Sequence[Tensor | None]) -> list[Term]:
    """What is at the places, of tensors that are the rows of weights, then values and their norm five by five."""
    before = places[-1].row + 1
    made = []
    for index, (row, option, eps) in enumerate(places):
        values, mean, var, gamma, beta = tensors[before + 5 * index : before + 5 * index + 5]
        made.append(Term(cast(Tensor, values), cast(Tensor, tensors[row]), option, mean, var, gamma, beta, eps))
    return made


def _plain_mixed(places: Sequence[_Place], tensors: Sequence[Tensor | None]) -> Tensor:
    """Term by term: the reference."""
    total: Tensor | None = None
    for term in _terms(places, tensors):
        values = term.values
        if term.mean is not None and term.var is not None:
            values = normalized(values, Norm(term.mean, term.var, term.gamma, term.beta, term.eps))
        values = term.weights[term.option] * values
        total = values if total is None else total + values
    assert total is not None
    return total


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: tuple[_Place, ...], *tensors: Tensor | None) -> Tensor:
        ctx.places = places
        ctx.save_for_backward(*tensors)
        return launch.mix([term.dense() for term in _terms(places, tensors)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        places, tensors, needed = ctx.places, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a graph is asked for
            inputs = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
            made = torch.autograd.grad(_plain_mixed(places, tensors), inputs, grad, create_graph=True)
            found = iter(made)
            return None, *(next(found) if need else None for need in needed)
        grads = _empty_grads(tensors, needed, places[-1].row + 1)
        launch.unmix([term.dense() for term in _terms(places, tensors)], dense(grad), _terms(places, grads))
        return None, *grads


def _empty_grads(tensors: Sequence[Tensor | None], needed: Sequence[bool], rows: int) -> list[Tensor | None]:
    """Memory for the gradients that are needed; zeros for those of weights, some of which no term has."""
    vectors = sum(need for place, need in enumerate(needed[rows:]) if place % 5)
    channels = cast(Tensor, tensors[rows]).shape[1]
    small = iter(torch.empty(vectors, channels).unbind())
    grads: list[Tensor | None] = []
    for place, (tensor, need) in enumerate(zip(tensors, needed, strict=True)):
        if not need or tensor is None:
            grads.append(None)
        elif place < rows:
            grads.append(torch.zeros(tensor.shape))
        elif (place - rows) % 5:
            grads.append(next(small))
        else:
            grads.append(torch.empty_like(tensor, memory_format=torch.channels_last))
    return grads
