"""A step of a DARTS search against public code, in one run: seconds, peak memory, and equal losses and gradients.

    python benchmarks/supernet_step.py --peer darts=PATH [--batch-size 16,64] [--threads 2] [--repeats 5]
    python benchmarks/supernet_step.py      # where the time of our own step goes

PATH is a checkout of quark0/darts that was made to run on the installed PyTorch and on a CPU; nothing of it is here.
16 channels, 8 cells, 32x32 pixels, float32; the final network is DARTS_V2 with 36 channels and 20 cells. Losses and
gradients are compared first, at equal weights. Then both take steps in turns, each in a process of its own, and the
median of the ratios is printed: below 1 is faster than the peer. Memory is the most that a process held in its steps,
less what it held before the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.rarts import RARTS
from nasengine.allocator import keep_pages
from nasengine.seeding import generator
from nasengine.supernet import Supernet
from nasengine.task import Batch, Shapes
from nasengine.training import set_drop_path
from search_spaces.darts import DARTS as Cells
from search_spaces.darts import KINDS

SHAPES = Shapes((3, 32, 32), 10)
SPAWN = multiprocessing.get_context("spawn")
Step = Callable[[Batch, Batch], object]


class Peer:
    """quark0/darts at the same sizes."""

    def __init__(self, path: Path) -> None:
        sys.path.insert(0, str(path / "cnn"))
        import architect
        import model_search

        self.network = model_search.Network(16, SHAPES.outputs, 8, torch.nn.CrossEntropyLoss())
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        settings = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)
        self.architect = architect.Architect(self.network, settings)

    def step(self, train: Batch, valid: Batch, second: bool) -> None:
        """As in its train_search.py."""
        batches = (train.inputs, train.targets, valid.inputs, valid.targets)
        self.architect.step(*batches, 0.025, self.optimizer, unrolled=second)
        self.optimizer.zero_grad()
        self.network._loss(train.inputs, train.targets).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()


def supernet() -> Supernet:
    """Ours, in the memory format of a search."""
    made: Supernet = Cells().supernet(SHAPES, F.cross_entropy).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def step_of(algorithm: DARTS | RARTS) -> Step:
    """A step of ours."""
    keep_pages()
    if isinstance(algorithm, DARTS):
        state = algorithm.init(supernet(), generator(0), 1000)
        return lambda train, valid: algorithm.step(state, train, valid)
    other = algorithm.init(supernet(), generator(0), 1000)
    return lambda train, valid: algorithm.step(other, train, valid)


def final_step() -> Step:
    """A training step of the network of DARTS_V2: 36 channels, 20 cells, an auxiliary head, drop path."""
    keep_pages()
    space = Cells().final()
    network = space.build(space.read(DARTS_V2), SHAPES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_drop_path(network, 0.1)
    return _final_step(network, network.parameters())


def peer_final_step(path: Path) -> Step:
    """The same of the peer."""
    sys.path.insert(0, str(path / "cnn"))
    import genotypes
    import model

    network = model.NetworkCIFAR(36, SHAPES.outputs, 20, True, genotypes.DARTS_V2)
    network.drop_path_prob = 0.1
    return _final_step(network, network.parameters())


def _final_step(network: nn.Module, weights: Iterable[nn.Parameter]) -> Step:
    held = list(weights)
    optimizer = torch.optim.SGD(held, 0.025, momentum=0.9, weight_decay=3e-4)

    def step(train: Batch, valid: Batch) -> None:
        optimizer.zero_grad()
        logits, auxiliary = network(train.inputs)
        loss = F.cross_entropy(logits, train.targets) + 0.4 * F.cross_entropy(auxiliary, train.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(held, 5.0)
        optimizer.step()

    return step


def peer_step(path: Path, second: bool) -> Step:
    """A step of the peer."""
    peer = Peer(path)
    return lambda train, valid: peer.step(train, valid, second)


CONTESTS: dict[str, tuple[DARTS | RARTS, bool]] = {
    "first order": (DARTS(order="first"), False),
    "second order": (DARTS(order="second"), True),
    "RARTS, exact sweep": (RARTS(sweep="exact"), True),
    "RARTS, two passes": (RARTS(sweep="stale"), True),
}
"""By name: our algorithm, and whether the peer's step that it is held against is second order."""

FINAL = "final training"
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def batches(size: int, layout: torch.memory_format) -> tuple[Batch, Batch]:
    """Random images and targets, for training and validation."""
    rng = generator(0, size)

    def batch() -> Batch:
        images = torch.randn(size, *SHAPES.input, generator=rng).contiguous(memory_format=layout)
        return Batch(images, torch.randint(SHAPES.outputs, (size,), generator=rng))

    return batch(), batch()


def serve(connection: Connection, path: Path | None, name: str, size: int, threads: int) -> None:
    """Takes a step whenever it is asked to, and answers with its seconds and the bytes of all so far."""
    torch.set_num_threads(threads)
    if name == FINAL:
        step = final_step() if path is None else peer_final_step(path)
    else:
        algorithm, second = CONTESTS[name]
        step = step_of(algorithm) if path is None else peer_step(path, second)
    train, valid = batches(size, torch.channels_last if path is None else torch.contiguous_format)
    before = resident("VmRSS")
    while connection.recv():
        start = time.perf_counter()
        step(train, valid)
        seconds = time.perf_counter() - start
        connection.send((seconds, resident("VmHWM") - before))


def resident(name: str) -> int:
    """Bytes of this process that are in memory now (VmRSS), or were at most (VmHWM), as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Contestant:
    """A process that takes steps."""

    def __init__(self, path: Path | None, name: str, size: int, threads: int) -> None:
        self.connection, other = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(other, path, name, size, threads), daemon=True)
        self.process.start()

    def step(self) -> tuple[float, int]:
        """Seconds of one step, and bytes of all."""
        self.connection.send(True)
        found: tuple[float, int] = self.connection.recv()
        return found

    def end(self) -> None:
        self.connection.send(False)
        self.process.join()


def evaluated(peer: Peer, size: int, dtype: torch.dtype) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Loss, gradients of weights and gradients of alphas, at the peer's weights: of ours and of the peer."""
    peer.network.to(dtype)
    batch, ours = batches(size, torch.channels_last)[0], supernet().to(dtype)
    inputs = batch.inputs.to(dtype)
    theirs, alphas = list(peer.network.parameters()), peer.network.arch_parameters()
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs, strict=True):
            mine.copy_(other)
        for alpha in alphas:
            alpha.data = alpha.data.to(dtype)
    other_loss = peer.network._loss(inputs.contiguous(), batch.targets)
    wanted = torch.autograd.grad(other_loss, [*theirs, *alphas])
    logits = [alpha.detach().requires_grad_() for alpha in alphas]
    rows = torch.cat([torch.softmax(alpha, -1) for alpha in logits])
    labels = [f"{kind}/{source}-{node}" for kind in KINDS for source, node in Cells().edges()]
    loss = ours.evaluate(Batch(inputs, batch.targets), dict(zip(labels, rows, strict=True))).loss
    found = torch.autograd.grad(loss, [*ours.parameters(), *logits])
    count = len(theirs)
    return [[loss], [*found[:count]], [*found[count:]]], [[other_loss], [*wanted[:count]], [*wanted[count:]]]


def apart(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> str:
    """Relative differences."""
    pairs = [
        [torch.cat([t.detach().flatten().double() for t in c]) for c in two] for two in zip(found, wanted, strict=True)
    ]
    loss, weights, alphas = (float((one - other).norm() / other.norm()) for one, other in pairs)
    return f"loss {loss:.0e}, weights' gradients {weights:.0e}, alphas' {alphas:.0e}"


def compare(path: Path, size: int) -> str:
    """The differences in float64, where ours is the plain formula, and in float32 from the peer in float64."""
    peer = Peer(path)
    single, peer_single = evaluated(peer, size, torch.float32)
    double, peer_double = evaluated(peer, size, torch.float64)
    return (
        f"  float64, ours by the formula against the peer: {apart(double, peer_double)}\n"
        f"  float32 against the peer in float64: ours, compiled: {apart(single, peer_double)}; "
        f"the peer: {apart(peer_single, peer_double)}"
    )


def contest(path: Path, name: str, size: int, threads: int, repeats: int) -> str:
    """A line of the table."""
    ours, peer = Contestant(None, name, size, threads), Contestant(path, name, size, threads)
    for contestant in (ours, peer):
        contestant.step()
    pairs = [(ours.step(), peer.step()) for _ in range(repeats)]
    for contestant in (ours, peer):
        contestant.end()
    ratios = [mine[0] / other[0] for mine, other in pairs]
    ratio = statistics.median(ratios)
    seconds = [statistics.median(pair[place][0] for pair in pairs) for place in range(2)]
    memory, their_memory = pairs[-1][0][1], pairs[-1][1][1]
    return (
        f"  {name:18s} {seconds[0]:8.3f} s  peer {seconds[1]:8.3f} s  ratio {ratio:.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}), {1 / ratio:5.2f} times as fast  memory {memory / 2**20:5,.0f} of "
        f"{their_memory / 2**20:5,.0f} MiB, {memory / their_memory:.2f}"
    )


def print_profile(size: int) -> None:
    """Where the time of one first-order step of ours goes."""
    step, (train, valid) = step_of(DARTS(order="first")), batches(size, torch.channels_last)
    step(train, valid)
    step(train, valid)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step(train, valid)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="darts=PATH; without it our own step is profiled")
    parser.add_argument("--batch-size", default="16,64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default=";".join((*CONTESTS, FINAL)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peer is None:
        print_profile(int(arguments.batch_size.split(",")[0]))
        return
    path = Path(arguments.peer.removeprefix("darts=")).expanduser()
    print(f"torch {torch.__version__}, {arguments.threads} threads, 16 channels, 8 cells, 32x32 pixels, float32")
    for size in map(int, arguments.batch_size.split(",")):
        print(f"batch {size}, relative differences\n{compare(path, size)}", flush=True)
        for name in arguments.steps.split(";"):
            print(contest(path, name, size, arguments.threads, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
