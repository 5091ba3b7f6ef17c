r"""Signals of one channel, made here, and a 1-D CNN that tells their shape: widths and kernels are searched.

    nasengine search --space examples/signals.py:SignalNet --data examples/signals.py:signals --epochs 8 \
        --set algo.alphas.lr=0.05
    nasengine train results/signals/SignalNet/rarts/seed-0 --epochs 20 --set train.lr=0.1

The algorithm is rarts; `--algo darts` is called alike, `--algo deps` and `--algo slimming` without `--set`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasengine import Dataset, ElasticBatchNorm1d, ElasticConv1d, ElasticLinear, MixedOp, Shapes, Size

CLASSES = ("sine", "square", "saw")


def signals(length: int = 64, noise: float = 0.4) -> Dataset:
    """900 + 300 noisy periodic signals (1, length) of random frequency and phase, in three classes."""
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(1200) % len(CLASSES)
    frequency, phase = 3 + 3 * torch.rand(1200, 1, generator=rng), torch.rand(1200, 1, generator=rng)
    turns = frequency * torch.linspace(0, 1, length) + phase
    sine = torch.sin(2 * torch.pi * turns)
    waves = torch.stack([sine, sine.sign(), 2 * turns.frac() - 1])
    inputs = waves[targets, torch.arange(1200)] + noise * torch.randn(1200, length, generator=rng)
    inputs = inputs[:, None]
    return Dataset(
        name="signals",
        train_inputs=inputs[:900],
        train_targets=targets[:900],
        test_inputs=inputs[900:],
        test_targets=targets[900:],
        classes=CLASSES,
    )


class SignalNet(nn.Module):
    """Two convolutions of their own widths and kernels, an activation, the mean over time."""

    def __init__(self, shapes: Shapes, widths: tuple[int, ...] = (4, 8, 16)) -> None:
        super().__init__()
        kernels = (3, 7, 11)
        first, second = Size("first", widths), Size("second", widths)
        self.layers = nn.Sequential(
            ElasticConv1d(shapes.input[0], first, Size("first/kernel", kernels)),
            ElasticBatchNorm1d(first),
            MixedOp("activation", {"relu": nn.ReLU(), "tanh": nn.Tanh(), "silu": nn.SiLU()}),
            ElasticConv1d(first, second, Size("second/kernel", kernels), stride=2),
            ElasticBatchNorm1d(second),
            nn.ReLU(),
        )
        self.head = ElasticLinear(second, shapes.outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean(dim=-1))
        return logits
