"""Steps whose batch is divided among processes, with the gradients of the whole batch.

Within `sharded` every process evaluates its shard of a batch. The loss of the whole batch is the mean of those of the
shards, since losses are means over examples and shards are equal. Weights and mixture are the same everywhere. Where
they enter a pass, `to_shards` is the identity forward; backward it replaces the gradients by their means over the
processes, all of them by one exchange. `over_shards`, where a loss leaves a pass, is the mean forward and the
identity backward. Each is the backward of the other, so that gradients of any order are those of the whole batch, and
algorithms are the same for one process and for many.

torch's DistributedDataParallel is not used: it averages what reaches the `grad` of a module's own parameters, by hooks
of `backward()`, whereas algorithms take `torch.autograd.grad`, at virtual weights, for alphas, and of gradients.

Batch norms take the statistics of the whole batch: every call of `F.batch_norm` within `sharded` exchanges means and
variances, by one exchange forward and one backward. torch's SyncBatchNorm is not used: it takes no tensors on the CPU,
and has no second derivatives. With `norms="shard"` they take those of a shard, which is another search, without these
exchanges; running statistics are then the means over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nasengine.parallel import Ranks, gathered, sum_over_ranks

_ranks: ContextVar[Ranks | None] = ContextVar("nasengine_ranks", default=None)
_apart: ContextVar[bool] = ContextVar("nasengine_apart", default=False)


@contextmanager
def sharded(ranks: Ranks, norms: Literal["batch", "shard"] = "batch") -> Iterator[None]:
    """A block in which every process computes on its shard of a batch; nothing changes where there is one process.

    Args:
        ranks: of this process.
        norms: whether batch norms are over the whole batch, or over a shard.
    """
    if ranks.world == 1:
        yield
        return
    token, statistics = _ranks.set(ranks), _Norms(ranks.world, norms == "batch")
    try:
        with statistics:
            yield
    finally:
        _ranks.reset(token)
    statistics.unite()


@contextmanager
def apart() -> Iterator[None]:
    """A block within `sharded` for passes that differ between processes: batch norms are over a shard.

    Only for virtual passes, which leave no running statistics.
    """
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def is_sharded() -> bool:
    """Whether this is within `sharded`, and there are several processes."""
    return _ranks.get() is not None


def shard() -> int:
    """Which shard this process computes on; 0 outside of `sharded`."""
    ranks = _ranks.get()
    return 0 if ranks is None else ranks.rank


def to_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, whose gradients are the means over all shards; a missing one counts as zeros.

    A gradient that is missing on all shards stays missing, as for one process.
    """
    ranks = _ranks.get()
    places = [place for place, tensor in enumerate(tensors) if tensor.requires_grad]
    if ranks is None or not places or not torch.is_grad_enabled():
        return list(tensors)
    apply: Callable[..., tuple[Tensor, ...]] = _ToShards.apply
    passed = dict(zip(places, apply(ranks.world, *(tensors[place] for place in places)), strict=True))
    return [passed.get(place, tensor) for place, tensor in enumerate(tensors)]


def over_shards(value: Tensor) -> Tensor:
    """The mean over all shards of a tensor of any shape, with the gradient of the whole batch."""
    ranks = _ranks.get()
    if ranks is None:
        return value
    apply: Callable[..., tuple[Tensor, ...]] = _OverShards.apply
    return apply(ranks.world, [_Form(value.shape, value.stride(), value.dtype, value.device)], value)[0]


class _Form(NamedTuple):
    """What a gradient is like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _ToShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.world = world
        ctx.forms = [_Form(x.shape, x.stride(), x.dtype, x.device) for x in tensors]
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        apply: Callable[..., tuple[Tensor | None, ...]] = _OverShards.apply
        return (None, *apply(ctx.world, ctx.forms, *gradients))


class _OverShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, world: int, forms: list[_Form], *parts: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.world = world
        means: list[Tensor | None] = [None] * len(parts)
        for kind in dict.fromkeys((form.dtype, form.device) for form in forms):
            places = [place for place, form in enumerate(forms) if (form.dtype, form.device) == kind]
            found = _flat_mean([parts[place] for place in places], [forms[place] for place in places], world)
            for place, mean in zip(places, found, strict=True):
                means[place] = mean
        return tuple(means)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        apply: Callable[..., tuple[Tensor, ...]] = _ToShards.apply
        passed = dict(zip(places, apply(ctx.world, *(gradients[place] for place in places)), strict=True))
        return (None, None, *(passed.get(place) for place in range(len(gradients))))


def _flat_mean(parts: Sequence[Tensor | None], forms: Sequence[_Form], world: int) -> list[Tensor | None]:
    """Means over the processes by one exchange, with a number for each that says whether anyone has it."""
    sizes = [form.shape.numel() for form in forms]
    flat = torch.zeros(sum(sizes) + len(forms), dtype=forms[0].dtype, device=forms[0].device)
    *values, there = torch.split(flat, [*sizes, len(forms)])
    means = [_like(value, form) for value, form in zip(values, forms, strict=True)]
    for mean, part in zip(means, parts, strict=True):
        if part is not None:
            mean.copy_(part)
    there.copy_(torch.tensor([float(part is not None) for part in parts]))
    sum_over_ranks(flat).div_(world)
    return [mean if known else None for mean, known in zip(means, there.tolist(), strict=True)]


def _like(values: Tensor, form: _Form) -> Tensor:
    """A view of numbers (n,) in the memory layout of what they belong to, where that is dense."""
    dense = sorted(zip(form.stride, form.shape, strict=True))
    reach = 1
    for stride, size in dense:
        if size != 1 and stride != reach:
            return values.view(form.shape)
        reach *= size
    return values.as_strided(form.shape, form.stride, values.storage_offset())


# Batch norm


class _Norms(TorchFunctionMode):
    """Batch norms over the whole batch in place of `F.batch_norm`, or equal running statistics after those of shards.

    Args:
        world: how many processes there are.
        whole: over the whole batch.
    """

    def __init__(self, world: int, whole: bool) -> None:
        super().__init__()
        self._world, self._whole = world, whole
        self._moved: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm or _apart.get():
            return func(*args, **(kwargs or {}))
        return (_batch_norm if self._whole else self._of_shard)(self._world, *args, **(kwargs or {}))

    def _of_shard(
        self,
        world: int,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        del world
        self._moved += [statistic for statistic in (running_mean, running_var) if statistic is not None]
        return F.batch_norm(input, running_mean, running_var, *rest, **more)

    def unite(self) -> None:
        """Replaces running statistics of shards by their means."""
        if self._moved:
            with torch.no_grad():
                sizes = [len(statistic) for statistic in self._moved]
                flat = sum_over_ranks(torch.cat(self._moved)).div_(self._world)
                for statistic, mean in zip(self._moved, torch.split(flat, sizes), strict=True):
                    statistic.copy_(mean)


def _batch_norm(
    world: int,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` over the shards of all processes."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _BatchNorm.apply
    halved = input.dtype in (torch.bfloat16, torch.float16)  # whose moments are of single precision, as in torch
    output, mean, var = apply(input.float() if halved else input, weight, bias, eps, world)
    with torch.no_grad():
        count = world * input.numel() // len(mean)
        if running_mean is not None:
            running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        if running_var is not None:
            running_var.copy_((1 - momentum) * running_var + momentum * var * (count / max(1, count - 1)))
    return output.to(input.dtype)


class _BatchNorm(torch.autograd.Function):
    """Batch norm over all shards, with its mean and variance (not unbiased); input (B, C, ...).

    Backward where a graph is asked for differentiates `plain_batch_norm`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        local_var, local_mean = torch.var_mean(x, _all_but_channels(x), correction=0)
        means, variances = gathered(torch.stack([local_mean, local_var]), world).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.mark_non_differentiable(mean, var)
        ctx.settings = (eps, world)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, var = ctx.saved_tensors
        eps, world = ctx.settings
        if torch.is_grad_enabled():
            inputs = [tensor for tensor, asked in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if asked]
            outputs = plain_batch_norm(x, weight, bias, eps, world)
            found = iter(torch.autograd.grad(outputs, inputs, grad, create_graph=True))
            return (*(next(found) if asked else None for asked in ctx.needs_input_grad[:3]), None, None)
        slope, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, eps, [True, True, True]
        )
        if ctx.needs_input_grad[0]:
            count = world * x.numel() // len(mean)
            to_weight, to_bias = sum_over_ranks(torch.stack([grad_weight, grad_bias])) / count
            inverse = torch.rsqrt(var + eps)
            scale = inverse if weight is None else weight * inverse
            by_input = -scale * to_weight * inverse
            shift = -scale * to_bias - by_input * mean
            slope = slope.addcmul_(x, _per_channel(by_input, x)).add_(_per_channel(shift, x))
        gradients = (slope, grad_weight, grad_bias)
        return (*(g if asked else None for g, asked in zip(gradients, ctx.needs_input_grad, strict=False)), None, None)


def plain_batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: int) -> Tensor:
    """Batch norm over all shards in operations that can be differentiated as often as one likes; input (B, C, ...)."""
    others = _all_but_channels(x)
    centred = x - _per_channel(_sum(x.mean(others)) / world, x)
    variance = _sum(centred.square().mean(others)) / world
    normal = centred * _per_channel(torch.rsqrt(variance + eps), x)
    scaled = normal if weight is None else normal * _per_channel(weight, x)
    return scaled if bias is None else scaled + _per_channel(bias, x)


class _Sum(torch.autograd.Function):
    """The sum over all shards of what belongs to one; its backward is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return sum_over_ranks(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return _sum(grad)


def _sum(x: Tensor) -> Tensor:
    apply: Callable[..., Tensor] = _Sum.apply
    return apply(x)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))
