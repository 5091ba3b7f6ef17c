"""What a network costs: parameters, multiply-adds, memory, seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from nasengine.live import LiveBytes, weight_bytes
from nasengine.task import Shapes
from nasengine.work import OwnWork

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CPU: Final = torch.device("cpu")


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
    """A training step: seconds, and bytes at its peak: weights, optimiser state, gradients and activations."""

    seconds: float
    memory: int


def step_cost(
    step: Callable[[], object], held: Callable[[], int], repeats: int, device: torch.device = _CPU
) -> StepCost:
    """Runs a step once to warm up, `repeats` times under the clock, and once to count.

    Args:
        step: one training step.
        held: bytes that stay allocated between steps.
        repeats: timed steps; their mean counts.
        device: where it runs.
    """
    seconds = step_seconds(step, repeats)
    return StepCost(seconds, held() + step_bytes(step, device))


def step_seconds(step: Callable[[], object], repeats: int) -> float:
    """Seconds of a step: the mean of so many, after one to warm up."""
    step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def step_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that a step allocates at its peak, beyond what was held before it: activations, gradients, results.

    On CUDA as its allocator counts them, elsewhere those of tensors (`LiveBytes`): a process on the CPU grows by more,
    since kernels take scratch memory and what is freed stays with the allocator.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    live = LiveBytes()
    with live:
        step()
    return live.most


def peak_memory(device: torch.device) -> int | None:
    """The most bytes held so far: on CUDA by tensors, on the CPU by the process, None where nobody counts them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
