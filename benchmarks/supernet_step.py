"""A step of a DARTS search against public code, in one run: seconds, peak memory, and equal losses and gradients.

    python benchmarks/supernet_step.py --peer NAME=PATH [--batch-size 16,64] [--threads 2] [--repeats 5]
    python benchmarks/supernet_step.py      # where the time of our own step goes

NAME is darts (quark0/darts), nni (microsoft/nni), naslib (automl/NASLib) or ofa (mit-han-lab/once-for-all), and PATH a
checkout of it that was made to run on the installed PyTorch and on a CPU; nothing of it is here. 16 channels, 8 cells,
32x32 pixels, float32. Losses and gradients are compared first, at equal weights and the smallest batch. Then both take
steps in turns, each in a process of its own: seconds and memory are medians, the ratio is the median of the ratios, and
below 1 it is faster than the peer. Memory is the most that a process held in its steps, less what it held before.

The last column holds our step against a limit: the operations that the algorithm needs (two for each multiply-add of
convolutions and matrix products: forward, and as many again for each gradient that is needed) at the rate of torch.mm
of two float32 matrices of 1024x1024, median of 30 with the same threads, measured before in the same run. That rate is
what torch.mm reaches on this machine in that minute, not the peak of the processor.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import torch
from peers.contest import Contest, PeerError, batches, rate, search_operations, search_step

from nasengine.algorithms.darts import DARTS
from nasengine.errors import NasengineError, SettingError, UnknownNameError, reason

PEERS = ("darts", "naslib", "nni", "ofa")
SPAWN = multiprocessing.get_context("spawn")


def peer_module(name: str) -> ModuleType:
    """The adapter of a peer. Raises UnknownNameError."""
    if name not in PEERS:
        raise UnknownNameError("peer", name, PEERS)
    return importlib.import_module(f"peers.{name}")


def read_peer(text: str) -> tuple[str, Path]:
    """NAME=PATH. Raises SettingError or UnknownNameError for what is neither."""
    name, equals, place = text.partition("=")
    if not equals:
        raise SettingError(f"--peer must be NAME=PATH, such as darts=../darts, but is {text!r}.")
    if name not in PEERS:
        raise UnknownNameError("peer", name, PEERS)
    path = Path(place).expanduser().resolve()
    if not path.is_dir():
        raise SettingError(f"--peer {name}=PATH must name a directory with its checkout, but {path} is none.")
    return name, path


def chosen(contests: dict[str, Contest], steps: str) -> list[str]:
    """The names that contain one of the parts, which semicolons separate. Raises UnknownNameError."""
    parts = [part.strip() for part in steps.split(";")]
    for part in parts:
        if not any(part in name for name in contests):
            raise UnknownNameError("step", part, contests)
    return [name for name in contests if any(part in name for part in parts)]


def serve(connection: Connection, path: Path | None, peer: str, name: str, size: int, threads: int) -> None:
    """Takes a step whenever it is asked to, and answers with its seconds and the bytes of all so far."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)  # peers draw their weights from torch's own generator
    found: Contest = peer_module(peer).CONTESTS[name]
    step = found.ours() if path is None else found.theirs(path)
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

    def __init__(self, path: Path | None, peer: str, name: str, size: int, threads: int) -> None:
        self.connection, other = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(other, path, peer, name, size, threads), daemon=True)
        self.process.start()
        other.close()
        self.whose = "ours" if path is None else peer

    def step(self) -> tuple[float, int]:
        """Seconds of one step, and bytes of all."""
        try:
            self.connection.send(True)
            found: tuple[float, int] = self.connection.recv()
        except (EOFError, OSError) as error:
            raise PeerError(f"A step of {self.whose} must run, but its process has ended; see above why.") from error
        return found

    def end(self) -> None:
        self.connection.send(False)
        self.process.join()


def contest(path: Path, peer: str, name: str, size: int, threads: int, repeats: int) -> str:
    """A row of the table."""
    found: Contest = peer_module(peer).CONTESTS[name]
    speed = rate()
    ours, theirs = (Contestant(place, peer, name, size, threads) for place in (None, path))
    for contestant in (ours, theirs):
        contestant.step()
    pairs = [(ours.step(), theirs.step()) for _ in range(repeats)]
    for contestant in (ours, theirs):
        contestant.end()
    ratios = [mine[0] / other[0] for mine, other in pairs]
    ratio = statistics.median(ratios)
    seconds, their_seconds = (statistics.median(pair[side][0] for pair in pairs) for side in range(2))
    memory, their_memory = pairs[-1][0][1], pairs[-1][1][1]
    limit = "" if found.operations is None else share(found.operations(size), speed, seconds)
    return (
        f"| {name} | {seconds:.2f} | {their_seconds:.2f} | {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | "
        f"{1 / ratio:.3g} | {memory / 2**20:,.0f} of {their_memory / 2**20:,.0f} MiB, {memory / their_memory:.2f} | "
        f"{limit} |"
    )


def heading(peer: str) -> str:
    """The head of the table."""
    repository = peer_module(peer).REPOSITORY if hasattr(peer_module(peer), "REPOSITORY") else peer
    return (
        f"| step | ours, s | {repository}, s | ratio, median (range) | times as fast | memory, ours of theirs | "
        "arithmetic limit |\n|---|---|---|---|---|---|---|"
    )


def share(operations: int, speed: float, seconds: float) -> str:
    """What part of a step the operations alone would take at so many a second."""
    least = operations / speed
    return f"{operations / 1e9:.1f} GFLOP at {speed / 1e9:.0f} GFLOP/s: {least:.2g} s, {100 * least / seconds:.0f} %"


def print_profile(size: int) -> None:
    """Where the time of one first-order step of ours goes."""
    algorithm, speed = DARTS(order="first"), rate()
    step, (train, valid) = search_step(algorithm), batches(size, torch.channels_last)
    step(train, valid)
    start = time.perf_counter()
    step(train, valid)
    seconds = time.perf_counter() - start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step(train, valid)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))
    limit = share(search_operations(algorithm)(size), speed, seconds)
    print(f"DARTS, first order, batch {size}: {seconds:.3f} s; arithmetic limit {limit} of the step")


def hold(arguments: argparse.Namespace) -> None:
    """Prints the tables of a peer."""
    peer, path = read_peer(arguments.peer)
    module = peer_module(peer)
    names = chosen(module.CONTESTS, arguments.steps)
    print(f"torch {torch.__version__}, {arguments.threads} threads, 16 channels, 8 cells, 32x32 pixels, float32")
    sizes = [int(size) for size in arguments.batch_size.split(",")]
    torch.manual_seed(0)
    try:
        differences = module.differences(path, min(sizes))
    except ImportError as error:
        raise PeerError(f"{path} must be importable, but gives {reason(error)}; make it run.") from error
    print(f"\nrelative differences, batch {min(sizes)}\n{differences}")
    for size in sizes:
        print(f"\nbatch {size}\n\n{heading(peer)}", flush=True)
        for name in names:
            row = contest(path, peer, name, size, arguments.threads, arguments.repeats)
            print(row, flush=True)


def main(words: list[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="NAME=PATH, as above; without it our own step is profiled")
    parser.add_argument("--batch-size", default="16,64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default="", help="parts of the names in the table, with semicolons; default: all")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    try:
        if arguments.peer is None:
            print_profile(int(arguments.batch_size.split(",")[0]))
        else:
            hold(arguments)
    except NasengineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
