"""Two spaces as their first author wrote them from README.md alone: a mobile CNN, a classifier of token sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasengine import (
    Dataset,
    ElasticAttention,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepth,
    ElasticDepthwiseConv2d,
    ElasticEmbedding,
    ElasticLayerNorm,
    ElasticLinear,
    ElasticParameter,
    MixedOp,
    Shapes,
    Size,
)


class MobileBlock(nn.Module):
    def __init__(self, name: str, width: Size) -> None:
        super().__init__()
        hidden, kernel = Size(f"{name}/hidden", (8, 16)), Size(f"{name}/kernel", (3, 5))
        self.expand = nn.Sequential(ElasticConv2d(width, hidden, 1), ElasticBatchNorm2d(hidden), nn.SiLU())
        self.spatial = nn.Sequential(ElasticDepthwiseConv2d(hidden, kernel), ElasticBatchNorm2d(hidden), nn.SiLU())
        self.project = nn.Sequential(ElasticConv2d(hidden, width, 1), ElasticBatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.project(self.spatial(self.expand(x)))
        return y


class Mobile(nn.Module):
    def __init__(self, shapes: Shapes, layers: int = 2) -> None:
        super().__init__()
        width = Size("width", (4, 8))
        self.stem = ElasticConv2d(shapes.input[0], width, 3, stride=2)
        self.blocks = ElasticDepth("depth", [MobileBlock(f"block{n}", width) for n in range(layers)])
        self.head = ElasticLinear(width, shapes.outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def brackets() -> Dataset:
    """Sequences of 12 tokens: are there more 0 than 1?"""
    tokens = torch.randint(6, (300, 12), generator=torch.Generator().manual_seed(0))
    targets = ((tokens == 0).sum(1) > (tokens == 1).sum(1)).long()
    return Dataset(
        name="brackets",
        train_inputs=tokens[:200],
        train_targets=targets[:200],
        test_inputs=tokens[200:],
        test_targets=targets[200:],
        classes=("no", "yes"),
    )


class TextBlock(nn.Module):
    def __init__(self, name: str, width: Size) -> None:
        super().__init__()
        hidden = Size(f"{name}/hidden", (8, 16))
        self.norm = ElasticLayerNorm(width)
        self.attention = ElasticAttention(width, Size(f"{name}/heads", (1, 2)), 4)
        activation = MixedOp(f"{name}/activation", {"tanh": nn.Tanh(), "gelu": nn.GELU()})
        layers = (ElasticLayerNorm(width), ElasticLinear(width, hidden), activation, ElasticLinear(hidden, width))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        y: Tensor = x + self.mlp(x)
        return y


class Text(nn.Module):
    def __init__(self, shapes: Shapes, widths: tuple[int, ...] = (8, 16)) -> None:
        super().__init__()
        width = Size("width", widths)
        self.embed = ElasticEmbedding(shapes.vocabulary, width)
        self.position = ElasticParameter(shapes.input, width)
        self.blocks = ElasticDepth("depth", [TextBlock("a", width), TextBlock("b", width)])
        self.head = ElasticLinear(width, shapes.outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(tokens) + self.position()).mean(1))
        return logits
