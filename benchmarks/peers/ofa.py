"""The once-for-all step against mit-han-lab/once-for-all: gradients of four subnets, then one step of the optimiser.

The network is the published one (MobileNetV3 of width 1.0: up to 5 x 4 blocks, kernels 3, 5, 7 with transforms,
expansions 3, 4, 6), on images of 32x32 pixels in 10 classes. A step is the largest subnet, the smallest and two random
ones, the same on both sides; in "distilled" all but the largest learn from its outputs. A path is a checkout that was
made to run on the installed PyTorch, on a CPU and without torchvision; nothing of it is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithms.deps import DepS, ShrinkingWeights
from nasengine.allocator import keep_pages
from nasengine.architecture import Architecture
from nasengine.seeding import generator
from nasengine.shrinking import stage_at
from nasengine.supernet import Supernet
from nasengine.task import Batch
from peers.contest import SHAPES, Contest, Step, imported
from search_spaces.ofa import OFA

SUBNETS = 4
WEIGHTS = ShrinkingWeights(lr=0.01)
Teacher = Literal["none", "full"]


def supernet() -> Supernet:
    """Ours, in the memory format of a search."""
    space = OFA(shape="imagenet", resolutions=())
    made: Supernet = space.supernet(SHAPES, F.cross_entropy).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def drawn(own: Supernet) -> Iterator[list[Architecture]]:
    """The subnets of each step: the largest, the smallest and random ones, as `DepS` draws them from seed 0."""
    rng, stage = generator(0), stage_at(own, "delayed", 0.0, SUBNETS)
    while True:
        rest = [stage.random(own, rng) for _ in range(SUBNETS - 2)]
        yield [own.space.largest(own.choices), stage.smallest(own, generator(0)), *rest]


def ours(teacher: Teacher) -> Step:
    """A step of ours."""
    keep_pages()
    algorithm = DepS(warmup=0.0, ramp=0.0, sort=False, teacher=teacher, subnets=SUBNETS, weights=WEIGHTS)
    state = algorithm.init(supernet(), generator(0), 1000)
    return lambda train, valid: algorithm.step(state, train, valid)


def theirs(path: Path, teacher: Teacher) -> Step:
    """As in its progressive_shrinking.py, on given subnets."""
    network = peer(path)
    optimizer = torch.optim.SGD(
        network.parameters(), WEIGHTS.lr, momentum=WEIGHTS.momentum, weight_decay=WEIGHTS.weight_decay, nesterov=True
    )
    with torch.device("meta"):
        subnets = drawn(supernet())

    def step(train: Batch, valid: Batch) -> None:
        network.zero_grad()
        soft: Tensor | None = None
        for architecture in next(subnets):
            network.set_active_subnet(**settings(architecture))
            output = network(train.inputs)
            target = train.targets if soft is None or teacher == "none" else soft
            F.cross_entropy(output, target).backward()  # type: ignore[no-untyped-call]
            soft = F.softmax(output.detach(), 1) if soft is None else soft
        optimizer.step()

    return step


def peer(path: Path) -> Any:
    """The network of the checkout."""
    module = imported(path, "ofa.imagenet_classification.elastic_nn.networks.ofa_mbv3")
    return module.OFAMobileNetV3(
        SHAPES.outputs, dropout_rate=0.0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
    )


def settings(architecture: Architecture) -> dict[str, list[int]]:
    """An architecture as the peer is told it."""
    blocks = [f"unit{unit}/block{block}" for unit in range(1, 6) for block in range(1, 5)]
    return {
        "ks": [int(architecture[f"{block}/kernel"]) for block in blocks],
        "e": [int(architecture[f"{block}/expand"]) for block in blocks],
        "d": [int(architecture[f"unit{unit}/depth"]) for unit in range(1, 6)],
    }


REPOSITORY = "mit-han-lab/once-for-all"
CONTESTS: dict[str, Contest] = {
    "once-for-all": Contest(lambda: ours("none"), lambda path: theirs(path, "none")),
    "once-for-all, distilled": Contest(lambda: ours("full"), lambda path: theirs(path, "full")),
}


def differences(path: Path, size: int) -> str:
    """Relative differences of loss and gradients of a step's subnets, at the peer's weights, on a batch of this size.

    In float64, where ours is the plain formula, between the two; in float32 of both from the peer in float64.
    """
    network, own = peer(path), supernet()
    inputs = torch.randn(size, *SHAPES.input, generator=generator(0, size))
    targets = torch.randint(SHAPES.outputs, (size,), generator=generator(1, size))
    with torch.no_grad():
        for mine, other in zip(own.parameters(), network.parameters(), strict=True):
            mine.copy_(other + 0.05 * torch.randn(other.shape, generator=generator(2)) / max(1, other.dim() - 1))
            other.copy_(mine)
    subnets = next(drawn(own))
    single = _evaluated(own, network, subnets, inputs, targets)
    double = _evaluated(own.double(), network.double(), subnets, inputs.double(), targets)
    return (
        f"  float64: {_apart(double[0], double[1])}\n  float32, ours from exact: {_apart(single[0], double[1])}\n"
        f"  float32, peer from exact: {_apart(single[1], double[1])}"
    )


Found = tuple[Tensor, list[Tensor]]


def _evaluated(
    own: Supernet, network: Any, subnets: list[Architecture], inputs: Tensor, targets: Tensor
) -> tuple[Found, Found]:
    """Summed loss and gradients of ours and of the peer."""

    def mine(architecture: Architecture) -> Tensor:
        images = inputs.contiguous(memory_format=torch.channels_last)
        return own.evaluate(Batch(images, targets), own.hard(architecture), dict(own.named_parameters())).loss

    def other(architecture: Architecture) -> Tensor:
        network.set_active_subnet(**settings(architecture))
        return F.cross_entropy(network(inputs), targets)

    return _accumulated(own, mine, subnets), _accumulated(network, other, subnets)


def _accumulated(network: nn.Module, loss_of: Callable[[Architecture], Tensor], subnets: list[Architecture]) -> Found:
    network.zero_grad()
    total = torch.zeros(())
    for architecture in subnets:
        loss = loss_of(architecture)
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    return total, [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


def _apart(found: Found, wanted: Found) -> str:
    one, other = (torch.cat([g.flatten().double() for g in two[1]]) for two in (found, wanted))
    loss = abs(float(found[0]) - float(wanted[0])) / float(wanted[0])
    return f"loss {loss:.0e}, gradients {float((one - other).norm() / other.norm()):.0e}"
