"""What the contests share: batches, our own steps, what a step must compute, and how far two networks differ."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithm import descend, weight_optimizer
from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.rarts import RARTS
from nasengine.allocator import keep_pages
from nasengine.errors import NasengineError, reason
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes
from nasengine.training import set_drop_path
from nasengine.work import OwnWork
from search_spaces.darts import DARTS as Cells
from search_spaces.darts import KINDS

SHAPES = Shapes((3, 32, 32), 10)
CHANNELS, LAYERS = 16, 8
OPTIONS = tuple(next(iter(Cells().choices().values())).options)
LABELS = [f"{kind}/{source}-{node}" for kind in KINDS for source, node in Cells().edges()]
AUXILIARY, CLIP = 0.4, 5.0
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)

Step = Callable[[Batch, Batch], object]
"""Takes a training and a validation batch."""


class Contest(NamedTuple):
    """A step of ours, the step of a peer at a path, and operations of ours for a batch of so many images."""

    ours: Callable[[], Step]
    theirs: Callable[[Path], Step]
    operations: Callable[[int], int] | None = None


class PeerError(NasengineError, RuntimeError):
    """A checkout that is not there, or does not run here."""


def imported(path: Path, name: str) -> ModuleType:
    """A module of the checkout at `path`. Raises PeerError where that cannot be imported."""
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:
        raise PeerError(
            f"{name} of {path} must be importable with torch {torch.__version__}, but gives {reason(error)}; make the "
            "checkout run on it."
        ) from error


def batches(size: int, layout: torch.memory_format) -> tuple[Batch, Batch]:
    """Random images and targets, for training and validation."""
    rng = generator(0, size)

    def batch() -> Batch:
        images = torch.randn(size, *SHAPES.input, generator=rng).contiguous(memory_format=layout)
        return Batch(images, torch.randint(SHAPES.outputs, (size,), generator=rng))

    return batch(), batch()


def supernet() -> Supernet:
    """Ours, in the memory format of a search."""
    space = Cells(channels=CHANNELS, layers=LAYERS)
    made: Supernet = space.supernet(SHAPES, F.cross_entropy).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def search_step(algorithm: DARTS | RARTS) -> Step:
    """A step of ours."""
    keep_pages()
    if isinstance(algorithm, DARTS):
        state = algorithm.init(supernet(), generator(0), 1000)
        return lambda train, valid: algorithm.step(state, train, valid)
    other = algorithm.init(supernet(), generator(0), 1000)
    return lambda train, valid: algorithm.step(other, train, valid)


def final_network() -> nn.Module:
    """Ours of DARTS_V2: 36 channels, 20 cells, an auxiliary head, drop path."""
    space = Cells().final()
    network: nn.Module = space.build(space.read(DARTS_V2), SHAPES)
    set_drop_path(network, 0.1)
    return network


def final_step() -> Step:
    """A training step of ours of DARTS_V2."""
    keep_pages()
    network = final_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    held = list(network.parameters())
    optimizer = weight_optimizer(held, "sgd", 0.025, momentum=0.9, weight_decay=3e-4)

    def step(train: Batch, valid: Batch) -> None:
        del valid
        gradients = torch.autograd.grad(_loss(network(train.inputs), train.targets), held)
        descend(optimizer, held, gradients, None, CLIP)

    return step


def _loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Of logits and auxiliary logits."""
    logits, auxiliary = outputs
    return F.cross_entropy(logits, targets) + AUXILIARY * F.cross_entropy(auxiliary, targets)


def training_step(network: nn.Module) -> Step:
    """A step of SGD as public code takes it, for a network that gives (logits, auxiliary logits)."""
    held = list(network.parameters())
    optimizer = torch.optim.SGD(held, 0.025, momentum=0.9, weight_decay=3e-4)

    def step(train: Batch, valid: Batch) -> None:
        del valid
        optimizer.zero_grad()
        _loss(network(train.inputs), train.targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(held, CLIP)
        optimizer.step()

    return step


def first_order(network: nn.Module, weights: Iterable[Tensor], alphas: Iterable[Tensor]) -> Step:
    """A step of first-order DARTS as public code takes it: both gradients of all, of which each half uses its own."""
    held, logits = list(weights), list(alphas)
    optimizer = torch.optim.SGD(held, 0.025, momentum=0.9, weight_decay=3e-4)
    alpha_optimizer = torch.optim.Adam(logits, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(train: Batch, valid: Batch) -> None:
        alpha_optimizer.zero_grad()
        F.cross_entropy(network(valid.inputs), valid.targets).backward()  # type: ignore[no-untyped-call]
        alpha_optimizer.step()
        optimizer.zero_grad()
        F.cross_entropy(network(train.inputs), train.targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(held, CLIP)
        optimizer.step()

    return step


SEARCH_PARTS = {"first": 2 + 3, "second": 3 + 3 + 2 + 2 + 3, "exact": 3 + 3 + 2 + 2, "stale": 3 + 3}
"""Of every order of DARTS and sweep of RARTS, for each of its passes: forward is 1, the gradients of activations are 1,
and those of the weights are 1, where they are needed; alphas need none but those of activations."""


def search_operations(algorithm: DARTS | RARTS) -> Callable[[int], int]:
    """Operations that a step needs in convolutions and matrix products, two for each multiply-add."""
    parts = SEARCH_PARTS[algorithm.order if isinstance(algorithm, DARTS) else algorithm.sweep]
    return lambda size: 2 * parts * size * _supernet_work()


def final_operations(size: int) -> int:
    """The same of a training step of DARTS_V2."""
    with torch.device("meta"):
        network = final_network()
    return 2 * 3 * size * _work(network)


@cache
def _supernet_work() -> int:
    with torch.device("meta"):
        network = supernet()
        mixture = {label: torch.ones(len(OPTIONS)) for label in LABELS}
    return _work(network, mixture)


def _work(network: nn.Module, *others: object) -> int:
    with OwnWork(network) as own, torch.no_grad(), torch.device("meta"):
        network(SHAPES.zeros(2).to("meta"), *others)  # one image is too few for batch norms of one pixel
    return sum(own.work().values()) // 2


def rate(repeats: int = 30) -> float:
    """Operations a second of products of two float32 matrices (1024, 1024), the median."""
    one, other = torch.randn(2, 1024, 1024, generator=generator(0)).unbind()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(one, other)
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / statistics.median(seconds)


class Twin(NamedTuple):
    """A supernet of a peer, to be compared with ours.

    Attributes:
        network: the peer's, from images to logits.
        weights: its weights that ours has, too, in the order of ours.
        alphas: its logits.
        rows: its weights over OPTIONS of all LABELS, in their order, from logits like `alphas`.
    """

    network: nn.Module
    weights: list[Tensor]
    alphas: list[Tensor]
    rows: Callable[[list[Tensor]], Tensor]


class Found(NamedTuple):
    """What a pass gave: the loss, gradients of the weights, gradients of the alphas."""

    loss: list[Tensor]
    weights: list[Tensor]
    alphas: list[Tensor]


def twin_differences(twin: Twin, size: int) -> str:
    """The differences in float64, where ours is the plain formula, and in float32 from the peer in float64."""
    single, peer_single = evaluated(twin, size, torch.float32)
    double, peer_double = evaluated(twin, size, torch.float64)
    return (
        f"float64, ours by the formula against the peer: {apart(double, peer_double)}\n"
        f"float32 against the peer in float64: ours, compiled: {apart(single, peer_double)}; "
        f"the peer: {apart(peer_single, peer_double)}"
    )


def evaluated(twin: Twin, size: int, dtype: torch.dtype) -> tuple[Found, Found]:
    """Of ours and of the peer, at the peer's weights."""
    batch, ours = batches(size, torch.channels_last)[0], supernet().to(dtype)
    inputs = batch.inputs.to(dtype)
    twin.network.to(dtype)
    with torch.no_grad():
        for alpha in twin.alphas:
            alpha.data = alpha.data.to(dtype)
        for mine, other in zip(ours.parameters(), twin.weights, strict=True):
            mine.copy_(other)
    other_loss = F.cross_entropy(twin.network(inputs.contiguous()), batch.targets)
    wanted = torch.autograd.grad(other_loss, [*twin.weights, *twin.alphas])
    logits = [alpha.detach().requires_grad_() for alpha in twin.alphas]
    loss = ours.evaluate(Batch(inputs, batch.targets), dict(zip(LABELS, twin.rows(logits), strict=True))).loss
    found = torch.autograd.grad(loss, [*ours.parameters(), *logits])
    count = len(twin.weights)
    return (
        Found([loss], [*found[:count]], [*found[count:]]),
        Found([other_loss], [*wanted[:count]], [*wanted[count:]]),
    )


def apart(found: Found, wanted: Found) -> str:
    """Relative differences."""
    loss, weights, alphas = (_distance(one, other) for one, other in zip(found, wanted, strict=True))
    return f"loss {loss:.0e}, weights' gradients {weights:.0e}, alphas' {alphas:.0e}"


def _distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    one, other = (torch.cat([t.detach().flatten().double() for t in side]) for side in (found, wanted))
    return float((one - other).norm() / other.norm())
