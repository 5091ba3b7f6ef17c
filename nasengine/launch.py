"""Runs `nasengine.kernels`: memory for them, the table of what they need, and threads.

The threads are those of PyTorch: the kernels run in its OpenMP team, since a second pool would wait for cores on which
the first one spins. Where that cannot be found they run in threads of Python, without its lock.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import struct
import threading
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasengine.errors import reason

_CHUNKS: Final = 16
"""Most parts that a batch is cut into: as many threads are of use."""
_SLACK: Final = 2048  # bytes: tiles read up to seven pixels too far
_PIXELS: Final = 128
"""Of the output, that go through everything at a time: some rows."""
COMPILING: Final = "loops are being compiled for this machine, once: that takes about 25 s"
_SILENT = 4.0  # seconds in which nothing is told: a cache is read in one
_told: ContextVar[Callable[[str], object]] = ContextVar(
    "nasengine_launch_told", default=logging.getLogger("nasengine").info
)
_local = threading.local()


@contextmanager
def telling(note: Callable[[str], object]) -> Iterator[None]:
    """A block in which a compilation that takes long is told to `note`, and not to the log of the package."""
    token = _told.set(note)
    try:
        yield
    finally:
        _told.reset(token)


@contextmanager
def _announced() -> Iterator[None]:
    """Tells that loops are being compiled, unless the cache has them: then it takes less time."""
    timer = threading.Timer(_SILENT, _told.get(), [COMPILING])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def compiled() -> bool:
    """Whether the kernels are there: numba is installed, and can compile them for this machine; it warns where not."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    try:
        from nasengine import kernels

        with _announced():
            kernels.compile_all()
    except Exception as error:
        warnings.warn(f"numba cannot compile loops here, plain modules run, slower: {reason(error)}.", stacklevel=2)
        return False
    return True


Norm = tuple[int, int, int, int, int]
"""A batch norm: the bits of its eps, the addresses of mean, variance, and of learned scale and shift or 0."""
NO_NORM: Final[Norm] = (0,) * 5
Shape = tuple[int, int, int, int]
"""Of a pair: kernel, stride, dilation, channels of the output."""


def run_pairs(
    back: bool,
    x: Tensor,
    norm: Norm,
    shapes: tuple[Shape, ...],
    rows: Iterable[Sequence[int]],
    found: Sequence[int] = NO_NORM,
    onto: bool = False,
) -> None:
    """Runs the kernel of `nasengine.kernels.forward` or `nasengine.kernels.backward`.

    Args:
        x: (B, C, H, W) in channels-last.
        rows: of each pair twelve addresses, 0 for none: the weights of the depthwise and of the 1x1 convolution; y, its
            mean and variance; their gradients; those of the weights; factors (C2,) and (B,) for the gradient of y.
        found: addresses for the gradients of x, and of the four tensors of its norm.
        onto: whether the gradient of x is added to what is there.
    """
    images, channels, height, width = x.shape
    divided, places, size, sums = _plan(back, channels, height, width, shapes)
    chunks = min(images, _CHUNKS)
    threads = min(torch.get_num_threads(), chunks)
    base = workspace(size * threads + sums * (chunks if back else images))
    table = [0, 0, 0, chunks, images, channels, height, width, len(shapes), x.data_ptr(), *norm, *found]
    table += [any(found), onto, base, size, base + size * threads, sums, *places]
    for shape, row, (band, at_sums, at_weights) in zip(shapes, rows, divided, strict=True):
        table += (*shape, band, *row, at_sums, at_weights)
    run("backward" if back else "forward", table, threads)


def run_terms(kernel: str, like: Tensor, total: int, rows: Sequence[Sequence[int]]) -> None:
    """Runs a kernel of `nasengine.kernels.mixing`: "mixing_forward", "mixing_backward" or "moments".

    Args:
        like: of the shape of all values, (N, C, H, W) in channels-last.
        total: address of the sum, or of its gradient.
        rows: of each term the sixteen entries that `nasengine.kernels.mixing` names.
    """
    row, channels, count = _bytes(like.shape[1]), like.shape[1], len(rows)
    pixels = like.numel() // channels
    chunks = min(_CHUNKS, pixels // 64 + 1)
    threads, partial = min(torch.get_num_threads(), chunks), chunks * row * 2 * count
    base = workspace(partial + threads * row * (6 * count + 2))
    image = like.shape[2] * like.shape[3] if any(each[2] for each in rows) else 0
    table = [0, 0, 0, chunks, pixels, channels, count, total, base, base + partial, image]
    for each in rows:
        table += each
    run(kernel, table, threads)


@functools.cache
def _bytes(channels: int) -> int:
    """Of a pixel in whole vectors."""
    from nasengine.kernels.vectors import BYTES, LANES

    return -(-channels // LANES) * BYTES


def _halved(size: int, stride: int) -> int:
    return (size + stride - 1) // stride


def address(tensor: Tensor | None) -> int:
    """Of the numbers of a tensor; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(1024)
def _plan(
    back: bool, channels: int, height: int, width: int, pairs: tuple[tuple[int, int, int, int], ...]
) -> tuple[list[tuple[int, int, int]], list[int], int, int]:
    """How the scratch memory of a thread is divided: as (band, sums, weights) a pair, the rest, its size, and sums.

    Args:
        pairs: (kernel, stride, dilation, outputs) of each.
    """
    from nasengine.kernels.vectors import BYTES, LANES

    blocks = -(-channels // LANES)
    ends, end, sums = [], 0, 2 * blocks * BYTES if back else 0
    norm, u, v, g, spread, grad_u = 3 * blocks, 0, 0, 0, 0, 0
    for kernel, stride, dilation, outputs in pairs:
        rows, columns = _halved(height, stride), _halved(width, stride)
        taps, wide, reach = (kernel * kernel + 8) // 9 * 9, -(-outputs // LANES), dilation * (kernel - 1) // 2
        band = min(rows, -(-_PIXELS // columns))
        ends.append((band, sums, end))
        end += 16 * (taps + stride * stride * (1 + kernel * kernel))
        end = -(-end // 64) * 64 + (2 * blocks * taps + wide * channels + blocks * outputs + 4 * wide) * BYTES
        sums += blocks * (taps + LANES * wide) * BYTES if back else 2 * wide * BYTES
        u = max(u, ((band - 1) * stride + 2 * reach + 1) * (width + 2 * reach))
        v = max(v, band * columns * (1 if back else blocks))
        g = max(g, band * columns * wide)
        kept = _halved(2 * reach, stride)
        spread = max(spread, blocks * (kept + band + reach) * (columns + 2 * reach))
        grad_u = max(grad_u, (stride * band + reach) * width)
    places = []
    for size in (norm, u, v, g, spread, grad_u) if back else (norm, u, v):
        places.append(end)
        end += size * BYTES + _SLACK
    return ends, places + [0] * (6 - len(places)), end, sums


def workspace(size: int) -> int:
    """The address of memory of this thread, kept for the next call; no tensor, since it is no part of a step's."""
    memory: NDArray[np.uint8] | None = getattr(_local, "memory", None)
    if memory is None or memory.size < size + 64:
        memory = _local.memory = np.empty(size + 64, np.uint8)
    return -(-memory.ctypes.data // 64) * 64


def run(kernel: str, table: Sequence[int], threads: int) -> None:
    """Runs a kernel of `nasengine.kernels` with a table of int64 in so many threads, which share the work."""
    arguments = array("q", table)
    _runner(kernel)(arguments.buffer_info()[0], threads)


@functools.cache
def bits(number: float) -> int:
    """A float32 in the first half of an int64."""
    return int.from_bytes(struct.pack("<f", number), "little")


@functools.cache
def _runner(kernel: str) -> Callable[[int, int], None]:
    from nasengine.kernels import ADDRESSES

    return _in_threads(ADDRESSES[kernel]())


def _in_threads(kernel: int) -> Callable[[int, int], None]:
    """Calls a kernel with a table in so many threads; they share the work among themselves."""
    alone = ctypes.CFUNCTYPE(None, ctypes.c_int64)(kernel)
    team = _team()

    def run(table: int, threads: int) -> None:
        if threads == 1:
            alone(table)
        elif team is None:
            _python_team(alone, table, threads)
        else:
            team(kernel, table, threads, 0)

    return run


@functools.cache
def _team() -> Callable[[int, int, int, int], object] | None:
    """`GOMP_parallel` of the OpenMP library that PyTorch has loaded."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CHUNKS, "nasengine-kernels")


def _python_team(alone: Callable[[int], None], table: int, threads: int) -> None:
    others = [_pool().submit(alone, table) for _ in range(threads - 1)]
    alone(table)
    wait(others)
