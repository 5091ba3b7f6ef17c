"""The space of vision transformers whose dimensions are choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import networkx as nx
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.attention import ElasticAttention
from nasengine.elastic import ElasticDepth, Size
from nasengine.errors import DataError, SettingError, UnknownNameError
from nasengine.layers import ElasticLayerNorm, ElasticLinear, ElasticParameter, FixedParameter
from nasengine.operations import DropPath
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.supernet import fix
from nasengine.task import Shapes

DIMENSIONS: Final = ("embedding", "depth", "heads", "width", "mlp")
"""What can be a choice; the last three in every block."""


@dataclass(frozen=True, kw_only=True)
class Transformer(Space):
    """Vision transformers with elastic embedding, depth, heads, width of a head, and MLP, whose weights are slices.

    The choices are "embedding" (of the whole residual stream), "depth", and in every block "block1/heads",
    "block1/width" (of queries, keys and values in a head) and "block1/mlp". Each has `options` values, in equal steps
    up to the largest and rounded up: 16, 32, 48, 64 for 4 options up to 64; with `options=0` it has every number from
    1 on, as a ranking of single units needs (arXiv:2204.07722; arXiv:2104.08500). The depth has every number from the
    first of its steps on. The choices of blocks beyond the depth are idle.

    A patch has by default at most 8/7 as many pixels a side as there are patches a side: 2 for images of 8 pixels, 4
    for 32, 16 for 224. The mean of the tokens is classified, as in later baselines (arXiv:2205.01580), or a class
    token. Linear weights start by Xavier's rule, from which small networks learn by momentum descent, or with `std`.
    DeiT-Ti (arXiv:2012.12877) is embedding=192, heads=3, depth=12, pooling=class, std=0.02 on 224 pixels; DeiT-S has
    embedding=384, heads=6, DeiT-B embedding=768, heads=12.

    Reference: Chen, Peng, Fu, Ling, ICCV 2021, arXiv:2107.00651, sections 3.1 and 3.3.

    Differs from the paper: the width of a head is a choice in place of a fixed 64, an MLP has a number of features in
    place of a ratio, positions are absolute alone, and the scale of the scores stays that of the largest width.
    """

    name: ClassVar[str] = "transformer"

    embedding: int = setting(64, "most features of a token", low=1)
    depth: int = setting(4, "most blocks", low=1)
    heads: int = setting(4, "most heads of a block", low=1)
    width: int | None = setting(None, "most query, key and value features of a head, embedding / heads if none", low=1)
    mlp: int | None = setting(None, "most hidden features of an MLP, 4 * embedding if none", low=1)
    options: int = setting(4, "values of a choice, in equal steps up to the largest; 0 for every number", low=0)
    fixed: str = setting("", f"which of {', '.join(DIMENSIONS)} are no choices, separated by commas")
    patch: int | None = setting(None, "pixels a side of a patch, by the size of the images if none", low=1)
    pooling: Literal["mean", "class"] = setting("mean", "classify the mean of all tokens, or a class token")
    std: float | None = setting(None, "standard deviation of linear weights at the start, Xavier's if none", above=0)

    def __post_init__(self) -> None:
        validate(self, "space")
        if self.width is None and self.embedding % self.heads:
            raise SettingError(
                f"space.heads must divide space.embedding unless space.width is set, but {self.heads} does not divide "
                f"{self.embedding}; change one of them or set the width of a head."
            )
        fixed = self._fixed()
        for name in fixed:
            if name not in DIMENSIONS:
                raise UnknownNameError("name in space.fixed", name, DIMENSIONS)
        if set(fixed) == set(DIMENSIONS):
            raise SettingError(f"space.fixed must leave a choice, but has all of {self.fixed}; leave one out.")

    def cheapest(self, choices: Mapping[str, Choice]) -> Architecture:
        """That of all smallest sizes."""
        return self.smallest(choices)

    def network(self, shapes: Shapes) -> nn.Module:
        side, count = _patches(self.patch, shapes)
        embedding = self._size("embedding", self.embedding)
        blocks = [self._block(place, embedding) for place in range(1, self.depth + 1)]
        depth = self._size("depth", self.depth)
        network = Network(
            Tokens(shapes.input[0], side, count, embedding, self.pooling == "class"),
            nn.Sequential(*blocks) if isinstance(depth, int) else ElasticDepth("depth", blocks, depth.values[0]),
            ElasticLayerNorm(embedding),
            ElasticLinear(embedding, shapes.outputs),
        )
        initialise(network, self.std)
        return network

    def build(self, architecture: Architecture, shapes: Shapes) -> nn.Module:
        network = fix(self.network(shapes), architecture, inherit=False)
        initialise(network, self.std)
        return network

    def graphs(self, architecture: Architecture) -> dict[str, nx.DiGraph[str]]:
        operations = {"tokens": f"{self._value(architecture, 'embedding', self.embedding)} features"}
        for place in range(1, self._value(architecture, "depth", self.depth) + 1):
            heads, width, mlp = (
                self._value(architecture, f"block{place}/{name}", largest)
                for name, largest in zip(DIMENSIONS[2:], self._largest(), strict=True)
            )
            operations[f"block{place}"] = f"{heads} head{'s' if heads > 1 else ''} x {width}, mlp {mlp}"
        graph: nx.DiGraph[str] = nx.DiGraph()
        for node, operation in operations.items():
            graph.add_node(node, operation=operation)
        nx.add_path(graph, operations)
        return {self.name: graph}

    def _block(self, place: int, embedding: int | Size) -> Block:
        sizes = zip(DIMENSIONS[2:], self._largest(), strict=True)
        return Block(embedding, *(self._size(f"block{place}/{name}", largest) for name, largest in sizes))

    def _largest(self) -> tuple[int, int, int]:
        """Heads, width and MLP of the largest block."""
        width = self.embedding // self.heads if self.width is None else self.width
        return self.heads, width, 4 * self.embedding if self.mlp is None else self.mlp

    def _fixed(self) -> list[str]:
        return [name.strip() for name in self.fixed.split(",") if name.strip()]

    def _size(self, label: str, largest: int) -> int | Size:
        if label.rpartition("/")[2] in self._fixed():
            return largest
        steps = self.options or largest
        return Size(label, tuple(sorted({-(-largest * step // steps) for step in range(1, steps + 1)})))

    def _value(self, architecture: Architecture, label: str, largest: int) -> int:
        return int(architecture.get(label, largest))


def _patches(side: int | None, shapes: Shapes) -> tuple[int, int]:
    """The pixels a side of a patch, and how many patches an image has."""
    if len(shapes.input) != 3 or shapes.vocabulary:
        what = "tokens" if shapes.vocabulary else "numbers"
        raise DataError(
            "Space 'transformer' needs images (channels, height, width), but one input is "
            f"{what} of shape {shapes.input}; take other data or another space."
        )
    height, width = shapes.input[1:]
    sides = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
    if side is None:
        side = max(p for p in sides if 7 * p * p <= 8 * min(height, width) or p == 1)
    if side not in sides:
        raise SettingError(
            f"space.patch must divide the height and width of the images, but {side} does not divide {height} x "
            f"{width}; take one of {', '.join(map(str, sides))}, or set data.image_size."
        )
    return side, (height // side) * (width // side)


def initialise(network: nn.Module, std: float | None) -> None:
    """The start of a vision transformer, in place: linear weights, biases of 0, tokens and positions.

    Linear weights are truncated normal with `std`, 0.02 in DeiT (arXiv:2012.12877), or uniform by Xavier's rule as in
    ViT (arXiv:2010.11929); tokens and positions are truncated normal with 0.02.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if std is None:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (ElasticParameter, FixedParameter)):
            nn.init.trunc_normal_(module.values, std=0.02)


class Patches(nn.Module):
    """Squares of an image, row by row: (batch, channels, height, width) -> (batch, patches, channels * side * side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        squares = x.reshape(batch, channels, height // self.side, self.side, width // self.side, self.side)
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * self.side**2)


class Tokens(nn.Module):
    """Projected patches after the class token if there is one, with positions: images -> (batch, tokens, embedding)."""

    def __init__(self, channels: int, side: int, count: int, embedding: int | Size, class_token: bool) -> None:
        super().__init__()
        self.patches = Patches(side)
        self.project = ElasticLinear(channels * side * side, embedding)
        self.first = ElasticParameter((1,), embedding) if class_token else None
        self.positions = ElasticParameter((count + class_token,), embedding)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.project(self.patches(x))
        if self.first is not None:
            tokens = torch.cat([self.first().expand(x.shape[0], 1, -1), tokens], dim=1)
        total: Tensor = tokens + self.positions()
        return total


class Block(nn.Module):
    """Self-attention and an MLP, each after a layer norm and added to the stream: (batch, tokens, embedding) -> same.

    In training both have drop path.
    """

    def __init__(self, embedding: int | Size, heads: int | Size, width: int | Size, mlp: int | Size) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            ElasticLayerNorm(embedding), ElasticAttention(embedding, heads, width), DropPath()
        )
        self.mlp = nn.Sequential(
            ElasticLayerNorm(embedding),
            ElasticLinear(embedding, mlp),
            nn.GELU(),
            ElasticLinear(mlp, embedding),
            DropPath(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        total: Tensor = x + self.mlp(x)
        return total


class Network(nn.Module):
    """Tokens, blocks, layer norm, the class token or the mean of all tokens, a linear classifier."""

    def __init__(self, tokens: Tokens, blocks: nn.Module, norm: ElasticLayerNorm, classifier: ElasticLinear) -> None:
        super().__init__()
        self.tokens, self.blocks, self.norm, self.classifier = tokens, blocks, norm, classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.tokens(x)))
        logits: Tensor = self.classifier(x.mean(dim=1) if self.tokens.first is None else x[:, 0])
        return logits
