"""What tests compute in one process and in two: algorithms, gradients and batch norms on the shards of a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import nasengine
from nasengine import registry
from nasengine.algorithm import Algorithm, state_dict
from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.deps import DepS, ShrinkingWeights
from nasengine.algorithms.rarts import RARTS
from nasengine.algorithms.slimming import Slimming
from nasengine.elastic import Size
from nasengine.layers import ElasticBatchNorm1d
from nasengine.parallel import Ranks, start, sum_over_ranks
from nasengine.seeding import generator
from nasengine.sharding import apart, over_shards, plain_batch_norm, sharded, to_shards
from nasengine.supernet import Supernet, _bound
from nasengine.task import Batch, Shapes
from nasengine.testing import Solvable, sized, smooth
from search_spaces.darts import DARTS as Cells
from tests.nasengine.elastic_spaces import hidden

ROOT = Path(nasengine.__file__).parents[1]
WAIT = timedelta(seconds=60)
STEPS = 4
CELLS = ("darts second",)
"""Algorithms that search the cells, which have many batch norms and so take long."""

LAYERS = ("darts", "darts exact", "rarts", "deps ramp")

ALGORITHMS: Mapping[str, Algorithm[Any]] = {
    **{name: registry.ALGORITHMS[name]() for name in registry.ALGORITHMS.names()},
    "darts second": DARTS(order="second"),
    "darts exact": DARTS(order="exact"),
    "darts gates": DARTS(order="second", widths="gates"),
    "rarts stale": RARTS(sweep="stale"),
    "deps ramp": DepS(warmup=0.5, ramp=0.5, weights=ShrinkingWeights(lr=0.02)),
    "deps random": DepS(warmup=0, ramp=0, sampling="random", teacher="none"),
    "deps frozen": DepS(shrinking="progressive", teacher="frozen", sampling="random", hard=1.0, warmup=0, ramp=0),
    "slimming norms": Slimming(on="norms"),
}


SPREAD = DepS(
    warmup=0,
    ramp=0,
    sort=False,
    spread=True,
    weights=ShrinkingWeights(lr=0.1, lr_min=0.1, momentum=0, nesterov=False, weight_decay=0),
)


def cells() -> Solvable:
    """A tiny supernet of cells in float32, as searches have."""
    rng, shapes = generator(3), Shapes((1, 8, 8), 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = Cells(channels=2, layers=3, nodes=1).supernet(shapes, F.cross_entropy)
    batches = [Batch(torch.randn(8, 1, 8, 8, generator=rng), torch.arange(8) % 4) for _ in range(2)]
    return Solvable(supernet.to(memory_format=torch.channels_last), *batches)


def halves() -> Solvable:
    """A small network in float32 whose passes are in bfloat16."""
    supernet, *batches = smooth()
    supernet.float().precision = "bfloat16"
    return Solvable(supernet, *(Batch(x.float(), targets) for x, targets in batches))


def part_of(batch: Batch, ranks: Ranks) -> Batch:
    """The shard of a process."""
    return Batch(*(tensor.chunk(ranks.world)[ranks.rank] for tensor in batch))


def price(supernet: Supernet) -> Callable[[Any], Tensor]:
    """A price that depends on the mixture alone, as limits make one."""

    def of(mixture: Mapping[str, Any]) -> Tensor:
        return sum((w[0] * w[0] for w in mixture.values() if isinstance(w, Tensor)), torch.zeros(()))

    return of


def searched(algorithm: Algorithm[Any], model: Solvable, ranks: Ranks, steps: int = STEPS) -> dict[str, Any]:
    """The state after some steps, and the losses of every step."""
    model.supernet.price = price(model.supernet)
    state = algorithm.init(model.supernet, generator(0), STEPS)
    losses = []
    for _ in range(steps):
        with sharded(ranks):
            info = algorithm.step(state, part_of(model.train, ranks), part_of(model.valid, ranks))
        # whose loss an algorithm reports is left to it: a search takes the mean
        known = torch.stack([loss for loss in (info.train_loss, info.valid_loss) if loss is not None])
        losses.append(known if ranks.world == 1 else sum_over_ranks(known) / ranks.world)
    return {"state": state_dict(state), "losses": losses}


def gradients(ranks: Ranks, order: int) -> list[Tensor | None]:
    """Derivatives of first or second order of a loss with a weight that not all shards use, and one that none does."""
    weights = [torch.tensor([0.3, -0.7], requires_grad=True, dtype=torch.float64) for _ in range(4)]
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).chunk(ranks.world)[ranks.rank]
    with sharded(ranks):
        used, here, _, fixed = to_shards([*weights[:3], weights[3].detach()])
        loss = (x[:, None] * used.sin() * fixed).sum(1).mean()
        if ranks.rank == 0:
            loss = loss + here.square().sum() * (0.5 if ranks.world == 1 else 1.0)
        loss = over_shards(loss)
        found = torch.autograd.grad(loss, weights[:3], create_graph=order == 2, allow_unused=True)
        if order == 1:
            return [loss.detach(), *found]
        return list(torch.autograd.grad(found[0].square().sum(), weights[:1]))


def normalised(ranks: Ranks, shape: tuple[int, ...], elastic: bool = False, second: bool = False) -> list[Tensor]:
    """Outputs and inputs' gradients (of the shard), the norm's gradients and statistics of a batch norm."""
    rng = generator(5, len(shape))
    whole = 3 + torch.randn(shape, generator=rng, dtype=torch.float64)
    whole = whole.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else whole
    towards = torch.randn(shape, generator=rng, dtype=torch.float64).chunk(ranks.world)[ranks.rank]
    x = whole.chunk(ranks.world)[ranks.rank].clone().requires_grad_()
    channels = shape[1]
    norm = ElasticBatchNorm1d(Size("width", (channels, channels + 2))) if elastic else nn.BatchNorm1d(channels)
    norm = norm if len(shape) < 4 else nn.BatchNorm2d(channels, affine=False, momentum=None)
    norm = norm.double()
    weights = dict(norm.named_parameters())
    with sharded(ranks), _bound({"width": 0}, False):
        own = dict(zip(weights, to_shards(list(weights.values())), strict=True))
        outputs = torch.func.functional_call(norm, own, (x,))
        inputs = [x, *weights.values()]
        found = torch.autograd.grad((outputs * towards).sum(), inputs, create_graph=second)
        if second:
            found = torch.autograd.grad(found[0].pow(3).sum(), inputs, allow_unused=True, materialize_grads=True)
    # the gradient of a shard's inputs is that of the sum of the shards' losses, the norm's is that of their mean
    scaled = [found[0], *(gradient * ranks.world for gradient in found[1:])]
    return [outputs.detach(), *scaled, *norm.buffers()]


def plain(ranks: Ranks) -> list[Tensor]:
    """A batch norm by the plain path."""
    rng = generator(6)
    x, towards = torch.randn(2, 8, 3, generator=rng, dtype=torch.float64).unbind()
    part = x.chunk(ranks.world)[ranks.rank].clone().requires_grad_()
    weight, bias = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]], dtype=torch.float64).unbind()
    if ranks.world == 1:
        outputs = F.batch_norm(part, None, None, weight, bias, True)
    else:
        outputs = plain_batch_norm(part, weight, bias, 1e-5, ranks.world)
    slope = torch.autograd.grad((outputs * towards.chunk(ranks.world)[ranks.rank]).sum(), part)[0]
    return [outputs.detach(), slope]


def of_shards(ranks: Ranks) -> list[Tensor]:
    """Outputs (of the shard) and statistics of a batch norm over shards, twice, and of one in a virtual pass."""
    whole = 3 + torch.randn(8, 3, 5, generator=generator(7), dtype=torch.float64)
    x, norm = whole.chunk(ranks.world)[ranks.rank], nn.BatchNorm1d(3).double()
    with sharded(ranks, "shard"):
        outputs = [norm(x), norm(2 * x)]
    with sharded(ranks), apart():
        outputs.append(F.batch_norm(x, None, None, training=True))
    return [*(output.detach() for output in outputs), *norm.buffers()]


def spread(ranks: Ranks) -> dict[str, Any]:
    """The state after a step of `SPREAD`."""
    model = hidden()
    state = SPREAD.init(model.supernet, generator(0), STEPS)
    with sharded(ranks):
        SPREAD.step(state, part_of(model.train, ranks), part_of(model.valid, ranks))
    return state_dict(state)


def computed(ranks: Ranks) -> dict[str, Any]:
    """All that is compared."""
    found: dict[str, Any] = {"gradients": gradients(ranks, 1), "second gradients": gradients(ranks, 2)}
    found |= {"plain": plain(ranks), "of shards": of_shards(ranks), "spread": spread(ranks)}
    for name, arguments in NORMS.items():
        found[name] = normalised(ranks, *arguments)
    for name, algorithm in ALGORITHMS.items():
        found[f"{name} on sizes"] = searched(algorithm, sized(), ranks)
    for name in LAYERS:
        found[f"{name} on layers"] = searched(ALGORITHMS[name], smooth(), ranks)
    for name in CELLS:
        found[f"{name} on cells"] = searched(ALGORITHMS[name], cells(), ranks, steps=2)
    found["rarts in bfloat16"] = searched(ALGORITHMS["rarts"], halves(), ranks)
    return found


NORMS: Mapping[str, Any] = {
    "rows": ((8, 3),),
    "signals": ((8, 3, 5),),
    "images": ((8, 3, 4, 5),),
    "elastic": ((8, 3, 5), True),
    "signals twice": ((8, 3, 5), False, True),
    "images twice": ((8, 3, 4, 5), False, True),
}


AROUND = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun sets around the tests themselves."""


def environment() -> dict[str, str]:
    """The environment of a process of a test."""
    kept = {name: value for name, value in os.environ.items() if name not in AROUND}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def meet(rank: int, world: int, directory: Path, wait: timedelta = WAIT) -> Ranks:
    """Begins a process group that meets in a file, and gives the place of this process."""
    store = f"file://{directory / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=wait)
    return start()
