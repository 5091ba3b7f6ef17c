"""A supernet is one graph for torch.compile: no Python runs between its kernels where a GPU has it compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from nasengine.alphas import Alphas
from nasengine.loop import seeded
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from tests.nasengine.test_waits import SEARCHED, SHAPES, made


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("space", SEARCHED)
def test_a_supernet_is_one_graph(space: str) -> None:
    with seeded(0, 0):
        plain: Supernet = made(space)
        x = torch.randn(4, *SHAPES.input)
    drawn = Alphas(plain.choices, generator(0), 1.0, x).mixture("softmax")
    mixture = {label: row.detach().requires_grad_() for label, row in drawn.items()}
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, backend="eager", fullgraph=True)  # raises where it would break
    expected, found = plain(x, mixture), compiled(x, mixture)
    torch.testing.assert_close(found, expected)
    targets = torch.arange(4) % 4
    gradients = [
        torch.autograd.grad(F.cross_entropy(outputs, targets), [*mixture.values(), *net.parameters()])
        for outputs, net in ((expected, plain), (found, other))
    ]
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(dict(other.named_buffers()), dict(plain.named_buffers()))
