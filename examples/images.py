"""A small CNN for images, whose width, kernels, depth and pooling are searched.

    nasengine search --space examples/images.py:SmallCNN --data digits --epochs 5 --set algo.alphas.lr=0.05
    nasengine train results/digits/SmallCNN/rarts/seed-0 --epochs 20 --set train.lr=0.1

The algorithm is rarts; `--algo darts` is called alike, `--algo deps` and `--algo slimming` without `--set`. `--data`
takes any images.
"""

from __future__ import annotations

from torch import Tensor, nn

from nasengine import ElasticBatchNorm2d, ElasticConv2d, ElasticDepth, ElasticLinear, MixedOp, Shapes, Size


class SmallCNN(nn.Module):
    """Convolutions of one width; the depth is how many of them there are."""

    def __init__(self, shapes: Shapes, widths: tuple[int, ...] = (8, 16, 32), layers: int = 3) -> None:
        super().__init__()
        width = Size("width", widths)
        self.stem = nn.Sequential(self._layer(shapes.input[0], width, 3), nn.MaxPool2d(2))
        kernels = [Size(f"kernel{place}", (1, 3, 5)) for place in range(1, layers + 1)]
        self.body = ElasticDepth("depth", [self._layer(width, width, kernel) for kernel in kernels])
        self.pool = MixedOp("pool", {"mean": nn.AdaptiveAvgPool2d(1), "max": nn.AdaptiveMaxPool2d(1)})
        self.head = ElasticLinear(width, shapes.outputs)

    def _layer(self, inputs: int | Size, outputs: Size, kernel: int | Size) -> nn.Module:
        return nn.Sequential(ElasticConv2d(inputs, outputs, kernel), ElasticBatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.body(self.stem(x))).flatten(1))
        return logits
