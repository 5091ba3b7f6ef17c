"""The optimisers of weights are those of PyTorch, however the numbers of a parameter lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasengine.algorithm import descend, weight_optimizer
from nasengine.seeding import generator


def parameters() -> list[nn.Parameter]:
    made = [torch.randn(4, 3, 3, 3, generator=generator(place)) for place in range(3)]
    flat = torch.randn(6, 4, generator=generator(4))
    apart = [made[0], made[1].contiguous(memory_format=torch.channels_last), made[2].transpose(0, 1), flat.t()]
    return [nn.Parameter(tensor) for tensor in (*apart, flat[:, 0])]


def gradients(like: list[nn.Parameter], seed: int) -> list[Tensor]:
    return [torch.randn(each.shape, generator=generator(10 * seed + place)) for place, each in enumerate(like)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("places", [range(4), range(5)])
def test_steps_are_those_of_the_plain_optimiser(name: str, places: range) -> None:
    found, wanted = ([parameters()[place] for place in places] for _ in range(2))
    optimizer = weight_optimizer(found, "sgd" if name == "sgd" else "adamw", 0.1, 0.9, 0.01)
    plain: torch.optim.Optimizer = torch.optim.SGD(wanted, 0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    if name == "adamw":
        plain = torch.optim.AdamW(wanted, 0.1, (0.9, 0.999), weight_decay=0.01, foreach=False)
    for seed in range(3):
        descend(optimizer, found, gradients(found, seed), None, 1.0)
        for parameter, gradient in zip(wanted, gradients(wanted, seed), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(wanted, 1.0)
        plain.step()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
