"""Elastic layers: ordinary layers whose inputs, outputs and kernels may be a `Size`.

Each is like its torch namesake and has the weights of its largest sizes; see `nasengine.elastic` for what
hard and soft mixtures make of them.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.depthwise import depthwise
from nasengine.elastic import ElasticLayer, Size, active, cut, largest, mask, read, value
from nasengine.errors import ArchitectureError
from nasengine.operations import DepthwiseConv, pointwise
from nasengine.supernet import Gates, decided


def put(parameter: Tensor | None, values: Tensor) -> None:
    """Overwrites a parameter or buffer."""
    if parameter is not None:
        with torch.no_grad():
            parameter.copy_(values)


class ElasticLinear(ElasticLayer):
    """A linear layer on the last dimension: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int | Size, outputs: int | Size, bias: bool = True) -> None:
        super().__init__()
        self._declare([inputs], [outputs])
        self.inputs, self.outputs = inputs, outputs
        self.linear = nn.Linear(largest(inputs), largest(outputs), bias)
        self.work = ((inputs, outputs),)
        self.weights = (*self.work, *([(outputs,)] if bias else []))

    def forward(self, x: Tensor) -> Tensor:
        inputs, outputs = self._receive(x, self.inputs, -1), active(self.outputs)
        x, weight = read(x, cut(self.linear.weight, outputs, inputs), self.inputs)
        bias = self.linear.bias
        return F.linear(x, weight, bias if bias is None else cut(bias, outputs))

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        inputs, outputs = value(self.inputs, architecture), value(self.outputs, architecture)
        layer = nn.Linear(inputs, outputs, self.linear.bias is not None).to(self.linear.weight)
        if inherit:
            put(layer.weight, cut(self.linear.weight, outputs, inputs))
            if layer.bias is not None:
                put(layer.bias, self.linear.bias[:outputs])
        return layer

    def importance(self, size: Size) -> Tensor | None:
        return self.linear.weight.detach().abs().sum(0) if size == self.inputs else None

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.inputs:
            put(self.linear.weight, self.linear.weight[:, order])
        if size == self.outputs:
            put(self.linear.weight, self.linear.weight[order])
            if self.linear.bias is not None:
                put(self.linear.bias, self.linear.bias[order])

    def scale(self, size: Size, factors: Tensor) -> None:
        if size == self.inputs:
            put(self.linear.weight, self.linear.weight * factors)


class ElasticEmbedding(ElasticLayer):
    """A learned vector for each of `count` tokens: (...) int64 -> (..., size)."""

    def __init__(self, count: int, size: int | Size) -> None:
        super().__init__()
        self._declare([], [size])
        self.size = size
        self.embedding = nn.Embedding(count, largest(size))
        self.weights = ((count, size),)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding.weight[:, : active(self.size)])

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        count = value(self.size, architecture)
        layer = nn.Embedding(self.embedding.num_embeddings, count).to(self.embedding.weight)
        if inherit:
            put(layer.weight, self.embedding.weight[:, :count])
        return layer

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.size:
            put(self.embedding.weight, self.embedding.weight[:, order])


class ElasticParameter(ElasticLayer):
    """A learned tensor (*shape, size): class tokens, position embeddings. Call it without input."""

    def __init__(self, shape: Sequence[int], size: int | Size, std: float = 0.02) -> None:
        super().__init__()
        self._declare([], [size])
        self.size = size
        self.values = nn.Parameter(std * torch.randn(*shape, largest(size)))
        self.weights = ((self.values[..., 0].numel(), size),)

    def forward(self) -> Tensor:
        return self.values[..., : active(self.size)]

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        count = value(self.size, architecture)
        return FixedParameter(self.values[..., :count].detach().clone())

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.size:
            put(self.values, self.values[..., order])


class FixedParameter(nn.Module):
    """A learned tensor as a module without input."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self) -> Tensor:
        return self.values


class ElasticBatchNorm(ElasticLayer, abc.ABC):
    """Batch norm of the first channels; channels are dimension 1. The running statistics are shared as well."""

    _plain: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]

    def __init__(self, size: int | Size, affine: bool = True) -> None:
        super().__init__()
        self._declare([size])
        self.size = size
        self.norm = self._plain(largest(size), affine=affine)
        self.weights = ((2, size),) if affine else ()

    def forward(self, x: Tensor) -> Tensor:
        count, norm = self._receive(x, self.size, 1), self.norm
        if count == norm.num_features:
            output: Tensor = norm(x)
            return output
        assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
        assert norm.num_batches_tracked is not None
        momentum = norm.momentum
        if norm.training:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / int(norm.num_batches_tracked) if momentum is None else momentum  # None: a cumulative mean
        return F.batch_norm(
            x,
            norm.running_mean[:count],
            norm.running_var[:count],
            norm.weight[:count] if norm.affine else None,
            norm.bias[:count] if norm.affine else None,
            norm.training,
            momentum or 0.0,
            norm.eps,
        )

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        count = value(self.size, architecture)
        like = self.norm.running_mean
        assert isinstance(like, Tensor)
        norm = self._plain(count, affine=self.norm.affine).to(like).train(self.norm.training)
        if inherit:
            for name, tensor in norm.state_dict().items():
                mine = self.norm.state_dict()[name]
                put(tensor, mine[:count] if mine.dim() else mine)
        return norm

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.size:
            for tensor in self.norm.state_dict().values():
                if tensor.dim():
                    put(tensor, tensor[order])


class ElasticBatchNorm1d(ElasticBatchNorm):
    """`nn.BatchNorm1d` of an elastic number of features: (batch, features) or (batch, features, length)."""

    _plain = nn.BatchNorm1d


class ElasticBatchNorm2d(ElasticBatchNorm):
    """`nn.BatchNorm2d` of an elastic number of channels: (batch, channels, height, width)."""

    _plain = nn.BatchNorm2d


class ElasticLayerNorm(ElasticLayer):
    """Layer norm over the last dimension.

    Under a soft mixture mean and variance are weighted by the mask; under gates they are over the units whose gate is
    not zero: the same network without the others computes the same.
    """

    def __init__(self, size: int | Size) -> None:
        super().__init__()
        self._declare([size])
        self.size = size
        self.norm = nn.LayerNorm(largest(size))
        self.weights = ((2, size),)

    def forward(self, x: Tensor) -> Tensor:
        count, norm = self._receive(x, self.size, -1), self.norm
        shares = mask(self.size)
        if shares is None:
            return F.layer_norm(x, (count,), cut(norm.weight, count), cut(norm.bias, count), norm.eps)
        if isinstance(self.size, Size) and isinstance(decided(self.size.label), Gates):
            shares = (shares != 0).to(x.dtype)
        shares = shares / shares.sum().clamp(min=torch.finfo(shares.dtype).tiny)  # all gates may be zero
        centred = x - (x * shares).sum(-1, keepdim=True)
        variance = (centred * centred * shares).sum(-1, keepdim=True)
        return centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        count = value(self.size, architecture)
        norm = nn.LayerNorm(count).to(self.norm.weight)
        if inherit:
            put(norm.weight, self.norm.weight[:count])
            put(norm.bias, self.norm.bias[:count])
        return norm

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.size:
            put(self.norm.weight, self.norm.weight[order])
            put(self.norm.bias, self.norm.bias[order])


class _ElasticConv(ElasticLayer, abc.ABC):
    """A convolution with padding kernel // 2, so that with stride 1 it keeps the size, whatever the kernel."""

    _dims: int
    _plain: type[nn.Conv1d] | type[nn.Conv2d]

    def __init__(
        self,
        inputs: int | Size,
        outputs: int | Size,
        kernel: int | Size,
        stride: int = 1,
        bias: bool = False,
        transforms: bool = True,
    ) -> None:
        super().__init__()
        self._declare([inputs], [outputs], kernel)
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.taps = ElasticKernel(kernel, self._dims, transforms)
        self.conv = self._plain(largest(inputs), largest(outputs), largest(kernel), stride, bias=bias)
        self.work = ((inputs, outputs, *[kernel] * self._dims),)
        self.weights = (*self.work, *([(outputs,)] if bias else []))

    def forward(self, x: Tensor) -> Tensor:
        inputs, outputs = self._receive(x, self.inputs, 1), active(self.outputs)
        weight, bias = self.taps(cut(self.conv.weight, outputs, inputs)), self.conv.bias
        factors = mask(self.inputs)
        weight = weight if factors is None else weight * factors.view(-1, *[1] * self._dims)
        return self._convolve(x, weight, bias if bias is None else cut(bias, outputs))

    @abc.abstractmethod
    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        inputs, outputs = value(self.inputs, architecture), value(self.outputs, architecture)
        kernel, biased = value(self.taps.kernel, architecture), self.conv.bias is not None
        layer = self._plain(inputs, outputs, kernel, self.stride, kernel // 2, bias=biased).to(self.conv.weight)
        if inherit:
            put(layer.weight, self.taps.cut(cut(self.conv.weight, outputs, inputs), kernel))
            if self.conv.bias is not None:
                put(layer.bias, self.conv.bias[:outputs])
        return layer

    def importance(self, size: Size) -> Tensor | None:
        return self.conv.weight.detach().abs().transpose(0, 1).flatten(1).sum(1) if size == self.inputs else None

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.inputs:
            put(self.conv.weight, self.conv.weight[:, order])
        if size == self.outputs:
            put(self.conv.weight, self.conv.weight[order])
            if self.conv.bias is not None:
                put(self.conv.bias, self.conv.bias[order])

    def scale(self, size: Size, factors: Tensor) -> None:
        if size == self.inputs:
            put(self.conv.weight, self.conv.weight * factors.view(-1, *[1] * self._dims))


class ElasticConv1d(_ElasticConv):
    """`nn.Conv1d` on signals (batch, channels, length)."""

    _dims, _plain = 1, nn.Conv1d

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv1d(x, weight, bias, self.stride, weight.shape[-1] // 2)


class ElasticConv2d(_ElasticConv):
    """`nn.Conv2d` on images (batch, channels, height, width)."""

    _dims, _plain = 2, nn.Conv2d

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.stride == 1 and weight.shape[-2:] == (1, 1):
            return pointwise(x, weight, bias)
        return F.conv2d(x, weight, bias, self.stride, weight.shape[-1] // 2)


class ElasticDepthwiseConv2d(ElasticLayer):
    """A convolution of every channel by itself, (batch, channels, height, width), with padding kernel // 2."""

    def __init__(self, channels: int | Size, kernel: int | Size, stride: int = 1, transforms: bool = True) -> None:
        super().__init__()
        self._declare([channels], kernel=kernel)
        self.channels, self.stride = channels, stride
        self.taps = ElasticKernel(kernel, 2, transforms)
        self.conv = DepthwiseConv(largest(channels), largest(kernel), stride)
        self.weights = self.work = ((channels, kernel, kernel),)

    def forward(self, x: Tensor) -> Tensor:
        channels = self._receive(x, self.channels, 1)
        weight = self.taps(cut(self.conv.weight, channels, 1))
        return depthwise(x, weight, self.stride, weight.shape[-1] // 2, 1)

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        channels, kernel = value(self.channels, architecture), value(self.taps.kernel, architecture)
        layer = DepthwiseConv(channels, kernel, self.stride).to(self.conv.weight)
        if inherit:
            put(layer.weight, self.taps.cut(cut(self.conv.weight, channels, 1), kernel))
        return layer

    def permute(self, size: Size, order: Tensor) -> None:
        if size == self.channels:
            put(self.conv.weight, self.conv.weight[order])


class ElasticKernel(nn.Module):
    """The smaller kernels inside the largest one, weight (outputs, inputs, *taps).

    The next smaller kernel is the centre of the larger one, multiplied by a learned matrix that all channels share and
    that starts as the identity (arXiv:1908.09791, section 3.3); without `transforms` the centre itself. Under a soft
    mixture the kernels, padded by zeros, are summed by their weights, which is the weighted sum of their outputs.
    """

    def __init__(self, kernel: int | Size, dims: int, transforms: bool) -> None:
        super().__init__()
        self.kernel, self.dims = kernel, dims
        self.matrices = nn.ParameterDict()
        if isinstance(kernel, int) and kernel % 2 == 0:
            raise ArchitectureError(f"Kernels must be odd, so that inputs keep their size, but got {kernel}.")
        if isinstance(kernel, Size):
            if any(taps % 2 == 0 for taps in kernel.values):
                raise ArchitectureError(f"Kernels must be odd, but choice {kernel.label!r} has {list(kernel.values)}.")
            if transforms:
                self.matrices.update({str(taps): nn.Parameter(torch.eye(taps**dims)) for taps in kernel.values[:-1]})

    def forward(self, weight: Tensor) -> Tensor:
        if isinstance(self.kernel, int):
            return weight
        weights = decided(self.kernel.label)
        if isinstance(weights, int):
            return self.cut(weight, self.kernel.values[weights])
        if isinstance(weights, Gates):
            raise ArchitectureError(f"Choice {self.kernel.label!r} is between kernels, which have no gates.")
        total = weight * weights[-1]
        for taps, share in zip(self.kernel.values[:-1], weights, strict=False):
            margin = (self.kernel.largest - taps) // 2
            total = total + F.pad(share * self.cut(weight, taps), [margin] * 2 * self.dims)
        return total

    def cut(self, weight: Tensor, taps: int) -> Tensor:
        """The kernel of `taps` a side out of the largest one."""
        if isinstance(self.kernel, int):
            return weight
        for smaller in reversed(self.kernel.values[:-1]):
            if smaller < taps:
                break
            margin = (weight.shape[-1] - smaller) // 2
            weight = F.pad(weight, [-margin] * 2 * self.dims)
            if str(smaller) in self.matrices:
                weight = F.linear(weight.flatten(2), self.matrices[str(smaller)]).view(weight.shape)
        return weight
