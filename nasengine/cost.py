"""What a network costs: parameters, multiply-adds, memory, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasengine.live import LiveBytes, weight_bytes
from nasengine.task import Shapes
from nasengine.work import OwnWork


def parameters(network: nn.Module) -> int:
    """Number of weights, without an auxiliary head."""
    head = getattr(network, "auxiliary", None)
    extra = sum(p.numel() for p in head.parameters()) if isinstance(head, nn.Module) else 0
    return sum(p.numel() for p in network.parameters()) - extra


def multiply_adds(build: Callable[[], nn.Module], shapes: Shapes) -> int:
    """Multiply-adds of convolutions and matrix products for one input, which is what papers call FLOPs.

    `build` is called on the meta device: nothing is allocated or computed.
    """
    with torch.device("meta"):
        network = build().eval().requires_grad_(False)
    return work(network, shapes.zeros(1).to("meta"))


def work(network: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products in a forward pass, on any device."""
    # a forward pass may make tensors without saying where
    with OwnWork(network) as own, torch.no_grad(), torch.device(inputs.device):
        network(inputs)
    return sum(own.work().values())


def memory(build: Callable[[], nn.Module], shapes: Shapes) -> int:
    """Bytes that inference for one input takes at its peak: weights, buffers, and the tensors that are held at a time.

    Exact for what PyTorch allocates without a graph for gradients, but for what kernels allocate within themselves.
    `build` is called on the meta device: nothing is allocated or computed. An auxiliary head is left out.
    """
    with torch.device("meta"):
        network = build().eval().requires_grad_(False)
    return weight_bytes(network) + activation_bytes(network, shapes.zeros(1).to("meta"))


def activation_bytes(network: nn.Module, inputs: Tensor) -> int:
    """Bytes of the inputs and of all tensors that are held at the peak of a forward pass, on any device."""
    live = LiveBytes()
    with live, torch.no_grad(), torch.device(inputs.device):
        live.hold(inputs)
        network(inputs)
    return live.most


@dataclass(frozen=True)
class StepCost:
    """A training step: seconds, and bytes of weights, gradients, optimiser state and activations kept for backward."""

    seconds: float
    memory: int


def step_cost(step: Callable[[], object], held: Callable[[], int], repeats: int) -> StepCost:
    """Runs a step once to warm up and `repeats` times under the clock.

    Args:
        step: one training step.
        held: bytes that stay allocated between steps.
        repeats: timed steps; their mean counts.
    """
    kept = _SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(kept.save, kept.load):
        step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return StepCost((time.perf_counter() - start) / repeats, held() + kept.most)


def bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class _SavedBytes:
    """Largest number of bytes that autograd holds at one time."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, int]] = {}
        self.now = self.most = 0

    def save(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        size, users = self.held.get(storage.data_ptr(), (storage.nbytes(), 0))
        self.held[storage.data_ptr()] = (size, users + 1)
        self.now += size if users == 0 else 0
        self.most = max(self.most, self.now)
        return _Kept(tensor, self)

    def load(self, kept: _Kept) -> Tensor:
        return kept.tensor

    def release(self, pointer: int) -> None:
        size, users = self.held.get(pointer, (0, 0))
        if users <= 1:
            self.held.pop(pointer, None)
            self.now -= size
        else:
            self.held[pointer] = (size, users - 1)


class _Kept:
    """One saved tensor; tells its counter when autograd lets it go."""

    def __init__(self, tensor: Tensor, counter: _SavedBytes) -> None:
        self.tensor, self.counter, self.pointer = tensor, counter, tensor.untyped_storage().data_ptr()

    def __del__(self) -> None:
        self.counter.release(self.pointer)
