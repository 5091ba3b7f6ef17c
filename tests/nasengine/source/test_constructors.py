from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasengine.operations import DepthwiseConv, DropPath
from nasengine.seeding import generator
from nasengine.source.constructors import constructor


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), bias=False), None),
        (nn.Conv1d(4, 4, 3, groups=2, padding_mode="circular"), None),
        (nn.Conv2d(3, 8, 3, padding="same"), "nn.Conv2d(3, 8, 3, padding='same')"),
        (nn.Linear(3, 4), "nn.Linear(3, 4)"),
        (nn.Linear(3, 4, bias=False), "nn.Linear(3, 4, bias=False)"),
        (nn.BatchNorm2d(8, eps=1e-3, affine=False), "nn.BatchNorm2d(8, eps=0.001, affine=False)"),
        (nn.LayerNorm((4, 5)), "nn.LayerNorm((4, 5))"),
        (nn.LayerNorm(8, bias=False), "nn.LayerNorm(8, bias=False)"),
        (nn.GroupNorm(2, 8), "nn.GroupNorm(2, 8)"),
        (nn.AdaptiveAvgPool2d((1, None)), None),
        (nn.MaxPool2d(3, 1, ceil_mode=True), "nn.MaxPool2d(3, stride=1, ceil_mode=True)"),
        (nn.Embedding(9, 4, padding_idx=0), "nn.Embedding(9, 4, padding_idx=0)"),
        (nn.GELU(approximate="tanh"), "nn.GELU(approximate='tanh')"),
        (nn.PReLU(3), "nn.PReLU(num_parameters=3)"),
        (nn.GRU(4, 5, 2, bidirectional=True, batch_first=True), None),
        (nn.MultiheadAttention(8, 2, batch_first=True), "nn.MultiheadAttention(8, 2, batch_first=True)"),
        (nn.Upsample(scale_factor=2.0, mode="bilinear"), None),
        (nn.Flatten(), "nn.Flatten()"),
        (DepthwiseConv(4, 3, 2, 2), "nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2, groups=4, bias=False)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_text_makes_the_same_module(module: nn.Module, text: str | None) -> None:
    found = constructor(module)
    assert found is not None and text in (None, found)
    made = eval(found, {"nn": nn})
    assert made.extra_repr() == module.extra_repr() and repr(getattr(made, "batch_first", 0)) == repr(
        getattr(module, "batch_first", 0)
    )
    made.load_state_dict(module.state_dict())


class _Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Renamed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)


def test_only_what_computes_what_torchs_own_does_is_one_of_them() -> None:
    assert constructor(_Twice(3, 4)) is None and constructor(DropPath()) is None
    assert constructor(nn.Sequential(nn.ReLU())) is None and constructor(nn.Module()) is None
    assert constructor(nn.TransformerEncoderLayer(8, 2)) is None
    assert constructor(_Renamed()) == "nn.Linear(3, 4)"


def test_a_depthwise_convolution_is_a_plain_one() -> None:
    mine = DepthwiseConv(4, 5, 2, 2)
    plain = nn.Conv2d(4, 4, 5, 2, 4, 2, groups=4, bias=False)
    plain.load_state_dict(mine.state_dict())
    x = torch.randn(2, 4, 9, 9, generator=generator(0))
    assert torch.equal(mine(x), plain(x))
