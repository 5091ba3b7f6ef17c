"""Passes at other tensors, against `torch.func.functional_call`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nasengine.seeding import generator
from nasengine.virtual import buffers_of, call_at, copied


class Tied(nn.Module):
    """A weight and a module that are used twice, buffers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.again = nn.ModuleList([self.norm])
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_parameter("none", None)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.other(self.again[0](self.norm(self.one(x)))) * self.get_buffer("mask")
        return outputs


def moved(network: nn.Module) -> dict[str, Tensor]:
    tensors = {name: p.detach() + 0.5 for name, p in network.named_parameters()}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def test_it_is_the_functional_call() -> None:
    network, x = Tied(), torch.randn(5, 3, generator=generator(0))
    weights = moved(network)
    found = []
    for call in (call_at, functional_call):
        scratch = copied(buffers_of(network))
        outputs = call(network, {**weights, **scratch}, (x,))
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), list(weights.values())), *scratch.values()])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(found[0][0], network(x))


def test_nothing_is_left_behind() -> None:
    network, x = Tied(), torch.randn(5, 3)
    before = {name: (id(t), t.clone()) for name, t in (*network.named_parameters(), *network.named_buffers())}
    weights = {**moved(network), **copied(buffers_of(network))}
    call_at(network, weights, (x,))
    with pytest.raises(RuntimeError, match="shape"):
        call_at(network, weights, (torch.randn(5, 4),))
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])


def test_copies_are_equal_and_apart() -> None:
    numbers = [
        torch.tensor([-0.0, float("nan"), 1.5]),
        torch.tensor(3),
        torch.tensor([True]),
        torch.tensor(1, dtype=torch.int32),
    ]
    tensors = {str(place): tensor for place, tensor in enumerate(numbers)}
    for name, copy in copied(tensors).items():
        assert copy.dtype == tensors[name].dtype and copy is not tensors[name]
        assert torch.equal(copy.nan_to_num(9.0), tensors[name].nan_to_num(9.0))
        assert torch.equal(torch.signbit(copy), torch.signbit(tensors[name]))
    assert copied({}) == {}


def test_buffers_have_the_names_of_torch() -> None:
    network = Tied()
    assert list(buffers_of(network)) == [name for name, _ in network.named_buffers()]
