from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasengine.seeding import generator
from nasengine.task import Shapes
from nasengine.work import OwnWork, Path
from search_spaces.darts import DARTS


def measured(network: nn.Module, *inputs: Tensor) -> dict[Path, int]:
    with OwnWork(network) as own, torch.no_grad():
        network(*inputs)
    return own.work()


class Nested(nn.Module):
    """A convolution, a linear layer that is used twice, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, padding=1)
        self.inner = nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.inner(self.conv(x)))
        product: Tensor = y @ y.transpose(1, 2)
        return product


def test_work_of_every_module_by_hand() -> None:
    network = Nested().to("meta")
    work = measured(network, torch.zeros(1, 2, 5, device="meta"))
    assert work == {
        (network,): 3 * 5 * 3,
        (network, network.conv): 5 * 3 * 2 * 3,
        (network, network.inner, network.inner[0]): 2 * 3 * 5 * 5,
    }


def test_all_together_are_what_torch_counts() -> None:
    space, shapes = DARTS(channels=4, layers=3), Shapes((3, 9, 9), 10)
    architecture = space.sample(space.choices(), generator(0))
    with torch.device("meta"):
        cells, image = space.build(architecture, shapes), torch.zeros(1, 3, 9, 9)
        encoder, tokens = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 5, 8)
    for network, inputs in ((cells, image), (encoder, tokens)):
        network.eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(inputs)
        assert sum(measured(network, inputs).values()) == counter.get_total_flops() // 2 > 0


class Notes(nn.Module):
    """Notes what some operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.zeros(2, dtype=torch.int64, device=x.device)
        self.found += [whole * 2, whole * 2.0, whole * 2, *x.unbind(-1), x.mT, *torch.var_mean(x, dim=-1)]
        self.found += [torch.zeros(1) + torch.ones(1), torch.zeros(1) + torch.ones(1)]
        return x


def test_what_is_not_computed_again_has_the_same_form() -> None:
    network, x = Notes(), torch.zeros(3, 2, device="meta")
    measured(network, x)
    made, network.found = network.found, []
    with torch.no_grad():
        network(x)
    assert len(made) == len(network.found)
    for one, other in zip(made, network.found, strict=True):
        assert (one.shape, one.stride(), one.dtype, one.device) == (
            other.shape,
            other.stride(),
            other.dtype,
            other.device,
        )
    assert made[0].dtype == torch.int64 and made[1].dtype == torch.float32
    assert made[-1].tolist() == made[-2].tolist() == [1.0] and made[-1] is not made[-2]


def test_the_network_is_left_as_it_was() -> None:
    network = Nested().to("meta")
    with pytest.raises(RuntimeError), OwnWork(network):
        network(torch.zeros(1, 3, 5, device="meta"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert measured(network, torch.zeros(1, 2, 5, device="meta"))[(network,)] == 45
