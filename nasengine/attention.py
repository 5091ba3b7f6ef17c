"""Self-attention whose heads and widths may be sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.elastic import ElasticLayer, Size, active, cut, largest, learns_alone, mask, read, value
from nasengine.layers import put


class ToHeads(nn.Module):
    """A linear layer to heads: (batch, tokens, inputs) -> (batch, heads, tokens, width)."""

    def __init__(self, inputs: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.linear = nn.Linear(inputs, heads * width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y.view(*x.shape[:-1], self.heads, self.width).transpose(1, 2)


class FromHeads(nn.Module):
    """A linear layer on all heads: (batch, heads, tokens, width) -> (batch, tokens, outputs)."""

    def __init__(self, heads: int, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(heads * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x.transpose(1, 2).flatten(2))
        return output


class Attention(nn.Module):
    """softmax(scale * q k^T) v of all heads, then a linear layer: (batch, tokens, features) -> the same."""

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, merge: nn.Module, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.merge, self.scale = query, key, value, merge, scale

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.scale * self.query(x)) @ self.key(x).transpose(-2, -1)
        output: Tensor = self.merge(torch.softmax(scores, dim=-1) @ self.value(x))
        return output


class ElasticToHeads(ElasticLayer):
    """`ToHeads` with sizes; `weighted` layers multiply the units of their width by its mask."""

    def __init__(self, inputs: int | Size, heads: int | Size, width: int | Size, weighted: bool) -> None:
        super().__init__()
        self._declare([inputs], [heads, width])
        self.inputs, self.heads, self.width, self.weighted = inputs, heads, width, weighted
        self.linear = nn.Linear(largest(inputs), largest(heads) * largest(width))
        self.work = ((inputs, heads, width),)
        self.weights = (*self.work, (heads, width))

    def _parts(self) -> tuple[Tensor, Tensor]:
        heads, width = largest(self.heads), largest(self.width)
        return self.linear.weight.view(heads, width, -1), self.linear.bias.view(heads, width)

    def forward(self, x: Tensor) -> Tensor:
        inputs, heads, width = self._receive(x, self.inputs, -1), active(self.heads), active(self.width)
        weight, bias = self._parts()
        x, weight = read(x, cut(weight, heads, width, inputs), self.inputs)
        bias, factors, after = cut(bias, heads, width), mask(self.width) if self.weighted else None, None
        if factors is not None and learns_alone(factors, weight):
            after = factors
        elif factors is not None:
            weight, bias = weight * factors[:, None], bias * factors
        y = nn.functional.linear(x, weight.flatten(0, 1), bias.flatten()).view(*x.shape[:-1], heads, width)
        return (y if after is None else y * after).transpose(1, 2)

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        inputs, heads, width = (value(size, architecture) for size in (self.inputs, self.heads, self.width))
        layer = ToHeads(inputs, heads, width).to(self.linear.weight)
        if inherit:
            weight, bias = self._parts()
            put(layer.linear.weight, weight[:heads, :width, :inputs].flatten(0, 1))
            put(layer.linear.bias, bias[:heads, :width].flatten())
        return layer

    def importance(self, size: Size) -> Tensor | None:
        weight = self._parts()[0].detach().abs()
        if size == self.inputs:
            return weight.sum((0, 1))
        return weight.sum((0, 2)) if size == self.width and self.weighted else None

    def permute(self, size: Size, order: Tensor) -> None:
        weight, bias = (part.clone() for part in self._parts())
        if size == self.inputs:
            weight = weight[..., order]
        if size == self.heads:
            weight, bias = weight[order], bias[order]
        if size == self.width:
            weight, bias = weight[:, order], bias[:, order]
        put(self.linear.weight, weight.flatten(0, 1))
        put(self.linear.bias, bias.flatten())

    def scale(self, size: Size, factors: Tensor) -> None:
        weight, bias = self._parts()
        if size == self.inputs:
            put(self.linear.weight, (weight * factors).flatten(0, 1))
        if size == self.width and self.weighted:
            put(self.linear.weight, (weight * factors[:, None]).flatten(0, 1))
            put(self.linear.bias, (bias * factors).flatten())


class ElasticFromHeads(ElasticLayer):
    """`FromHeads` with sizes: it reads the heads and their width."""

    def __init__(self, heads: int | Size, width: int | Size, outputs: int | Size) -> None:
        super().__init__()
        self._declare([heads, width], [outputs])
        self.heads, self.width, self.outputs = heads, width, outputs
        self.linear = nn.Linear(largest(heads) * largest(width), largest(outputs))
        self.work = ((heads, width, outputs),)
        self.weights = (*self.work, (outputs,))

    def _weight(self) -> Tensor:
        return self.linear.weight.view(-1, largest(self.heads), largest(self.width))

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self._receive(x, self.heads, 1), self._receive(x, self.width, -1)
        outputs = active(self.outputs)
        weight = cut(self._weight(), outputs, heads, width)
        factors = self._factors()
        if factors is not None and learns_alone(factors, weight):
            x = x * factors[:, None]
        elif factors is not None:
            weight = weight * factors
        return nn.functional.linear(x.transpose(1, 2).flatten(2), weight.flatten(1), cut(self.linear.bias, outputs))

    def _factors(self) -> Tensor | None:
        """Those of all units: (heads, width), or 1 in place of one of them."""
        heads, width = mask(self.heads), mask(self.width)
        if heads is None:
            return width if width is None else width[None]
        return heads[:, None] if width is None else heads[:, None] * width

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        heads, width, outputs = (value(size, architecture) for size in (self.heads, self.width, self.outputs))
        layer = FromHeads(heads, width, outputs).to(self.linear.weight)
        if inherit:
            put(layer.linear.weight, self._weight()[:outputs, :heads, :width].flatten(1))
            put(layer.linear.bias, self.linear.bias[:outputs])
        return layer

    def importance(self, size: Size) -> Tensor | None:
        weight = self._weight().detach().abs()
        if size == self.heads:
            return weight.sum((0, 2))
        return weight.sum((0, 1)) if size == self.width else None

    def permute(self, size: Size, order: Tensor) -> None:
        weight = self._weight().clone()
        if size == self.outputs:
            weight = weight[order]
            put(self.linear.bias, self.linear.bias[order])
        if size == self.heads:
            weight = weight[:, order]
        if size == self.width:
            weight = weight[:, :, order]
        put(self.linear.weight, weight.flatten(1))

    def scale(self, size: Size, factors: Tensor) -> None:
        if size == self.heads:
            put(self.linear.weight, (self._weight() * factors[:, None]).flatten(1))
        if size == self.width:
            put(self.linear.weight, (self._weight() * factors).flatten(1))


class ElasticAttention(ElasticLayer):
    """`Attention` of elastic features, heads, and widths of queries and keys and of values.

    All heads have one width. The scale of the scores stays that of the largest width, so that leaving out a dimension
    that is zero changes nothing.

    Args:
        features: of each token, in and out.
        heads: their number.
        width: of queries and keys in a head.
        value_width: of values in a head; `width` by default.
    """

    def __init__(
        self, features: int | Size, heads: int | Size, width: int | Size, value_width: int | Size | None = None
    ) -> None:
        super().__init__()
        value_width = width if value_width is None else value_width
        self._declare([features, heads, width, value_width])
        self.work = ((heads, width), (heads, value_width))
        self.attention = Attention(
            ElasticToHeads(features, heads, width, weighted=True),
            ElasticToHeads(features, heads, width, weighted=False),
            ElasticToHeads(features, heads, value_width, weighted=False),
            ElasticFromHeads(heads, value_width, features),
            largest(width) ** -0.5,
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x)
        return output

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        return self.attention
