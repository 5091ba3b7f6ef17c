"""What operations give before their last batch norm, with its moments: what `nasengine.edges` sums without norming.

Moments are taken in compiled loops where `nasengine.separable.is_fast` says so, and move the running ones all at once.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from nasengine.launch import run_terms
from nasengine.separable import Norm, Normalizable, dense, is_fast
from nasengine.supernet import Shared, in_call, once_a_call


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


class Half(NamedTuple):
    """A rectifier, a depthwise convolution if any, a 1x1 convolution, and a batch norm."""

    depthwise: nn.Conv2d | None
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d


class Separable(abc.ABC):
    """A module that is one or two halves, one after the other."""

    @abc.abstractmethod
    def halves(self) -> list[Half]:
        """In their order; none if it is something else, so that its forward must run."""


class WeighsImages(abc.ABC):
    """A module that multiplies every image of a batch by a number."""

    @abc.abstractmethod
    def weights(self, x: Tensor) -> Tensor | None:
        """The numbers (B,) for a batch (B, C, H, W); None for ones."""


class EndsInNorm(abc.ABC):
    """A module that can leave its last batch norm to others."""

    @abc.abstractmethod
    def unnormed(self, x: Tensor, statistics: Statistics) -> Unnormed:
        """What it gives before that."""


Found = tuple[nn.BatchNorm2d, Tensor, Tensor, int]


@dataclass
class Statistics:
    """Moments of batches, to be taken into the running ones of their norms all at once."""

    found: list[Found] = field(default_factory=list)

    def add(self, module: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
        """Notes moments of so many values a channel, if the module keeps any; raises ValueError for one, as torch."""
        if not module.training:
            return
        if count == 1:
            module(mean[None, :, None, None])  # refuses it
        if module.track_running_stats:
            self.found.append((module, mean.detach(), var.detach(), count))

    def noted(self, found: Normalizable, module: nn.BatchNorm2d) -> Unnormed:
        """What is to be normed by a module, with its moments noted."""
        self.add(module, found.mean, found.var, found.output.numel() // len(found.mean))
        return Unnormed(found.output, module, found.mean, found.var)

    def keep(self) -> None:
        """Moves the running moments as `torch.nn.BatchNorm2d` does; the variance is the unbiased one."""
        while self.found:
            now, later, seen = list[Found](), list[Found](), set[nn.BatchNorm2d]()
            for each in self.found:  # a norm that was used twice moves twice
                (later if each[0] in seen else now).append(each)
                seen.add(each[0])
            _keep(now)
            self.found = later


@torch.no_grad()
def _keep(found: Sequence[Found]) -> None:
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm, *_ in found], 1)
    for factor, group in groupby(found, key=lambda kept: _factor(kept[0])):
        norms, means, variances, counts = zip(*group, strict=True)
        running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
        unbiased = torch._foreach_mul(variances, [count / (count - 1) for count in counts])
        torch._foreach_lerp_(running, [*means, *unbiased], factor)


def _factor(norm: nn.BatchNorm2d) -> float:
    """How far the running moments move; without a momentum they are means over all batches so far."""
    return 1 / int(cast(Tensor, norm.num_batches_tracked)) if norm.momentum is None else float(norm.momentum)


def unnormed(module: nn.Module, x: Tensor, statistics: Statistics) -> Unnormed:
    """What a module gives before its last batch norm, if it ends in one."""
    if isinstance(module, Shared) and not is_hooked(module.module):
        if not in_call():
            return unnormed(module.module, x, statistics)
        # x is kept with what it gave: while it lives, nothing else has its id
        return once_a_call((id(module), id(x)), lambda: (x, unnormed(module.module, x, statistics)))[1]
    if isinstance(module, EndsInNorm):
        return module.unnormed(x, statistics)
    plain = type(module).forward is nn.Sequential.forward
    *before, last = cast("nn.Sequential", module) if plain and module._modules else [module]
    if type(last) is not nn.BatchNorm2d or is_hooked(last):
        return Unnormed(module(x))
    for child in before:
        x = child(x)
    return measured(x, last, statistics)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling it does more than its forward."""
    found = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(found)


def measured(values: Tensor, module: nn.BatchNorm2d, statistics: Statistics) -> Unnormed:
    """Values with their moments, which are noted; without them where the norm takes its running ones."""
    if not module.training and module.running_mean is not None:
        return Unnormed(values, module)
    return statistics.noted(Normalizable(values, *moments(values)), module)


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
        mean, var = torch.empty((2, values.shape[1])).unbind()
        given = dense(values)
        run_terms("moments", given, 0, [(given.data_ptr(), 0, 0, mean.data_ptr(), var.data_ptr(), *(0,) * 11)])
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
        given, found = dense(values), torch.empty_like(values, memory_format=torch.channels_last)
        held = [torch.full((1,), len(mean) / values.numel()), mean, 2 * grad_var, grad_mean.contiguous()]
        share, at, slope, shift = (tensor.data_ptr() for tensor in held)
        run_terms(
            "mixing_forward", given, found.data_ptr(), [(given.data_ptr(), share, 0, at, 0, slope, shift, *(0,) * 9)]
        )
        return found
