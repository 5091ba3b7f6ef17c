"""Runs `nasengine.kernels`: memory for them, the table of what they need, and threads.

The threads are those of PyTorch: the kernels run in its OpenMP team, since a second pool would wait for cores on which
the first one spins. Where that cannot be found they run in threads of Python, without its lock.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from nasengine.errors import reason

if TYPE_CHECKING:
    from nasengine.separable import Pair

_CHUNKS: Final = 16
"""Most parts that a batch is cut into: as many threads are of use."""
_SLACK: Final = 2048  # bytes: tiles read up to seven pixels too far
_PIXELS: Final = 128
"""Of the output, that go through everything at a time: some rows."""
_local = threading.local()


@functools.cache
def compiled() -> bool:
    """Whether the kernels are there: numba is installed, and can compile them for this machine; it warns where not."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    try:
        from nasengine import kernels

        kernels.compile_all()
    except Exception as error:
        warnings.warn(f"numba cannot compile loops here, plain modules run, slower: {reason(error)}.", stacklevel=2)
        return False
    return True


def forward(x: Tensor, scale: Tensor | None, shift: Tensor | None, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
    """(y, mean, var) of every pair, one after the other; x is (B, C, H, W) in channels-last."""
    images, _, height, width = x.shape
    outputs: list[Tensor] = []
    for pair in pairs:
        channels = pair.pointwise.shape[0]
        shape = (images, channels, _halved(height, pair.stride), _halved(width, pair.stride))
        outputs.append(torch.empty(shape, memory_format=torch.channels_last))
        outputs += torch.empty((2, channels)).unbind()
    nothing = [None] * (3 + 2 * len(pairs))
    _launch(False, x, scale, shift, pairs, outputs, [None] * len(outputs), nothing)
    return tuple(outputs)


def backward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    pairs: Sequence[Pair],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients that are needed of x, scale, shift, and the weights of every pair.

    Args:
        outputs: what `forward` gave.
        grads: theirs; those of y in channels-last, those of mean and var may be None.
        needed: for each gradient in the order in which they are given back.
    """
    inputs = [x, scale, shift, *(weight for pair in pairs for weight in pair[:2])]
    found = [
        torch.empty(tensor.shape, memory_format=torch.channels_last if tensor is x else torch.contiguous_format)
        if need and tensor is not None
        else None
        for tensor, need in zip(inputs, needed, strict=True)
    ]
    _launch(True, x, scale, shift, pairs, outputs, grads, found)
    return found


def _halved(size: int, stride: int) -> int:
    return (size + stride - 1) // stride


def _address(tensor: Tensor | None) -> int:
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
    u = v = g = spread = grad_u = 0
    for kernel, stride, dilation, outputs in pairs:
        rows, columns = _halved(height, stride), _halved(width, stride)
        taps, wide, reach = (kernel * kernel + 8) // 9 * 9, -(-outputs // LANES), dilation * (kernel - 1) // 2
        band = min(rows, -(-_PIXELS // columns))
        ends.append((band, sums, end))
        end += 16 * (taps + stride * stride * (1 + kernel * kernel))
        end = -(-end // 64) * 64 + (2 * blocks * taps + wide * channels + blocks * outputs + 2 * wide) * BYTES
        sums += blocks * (taps + LANES * wide) * BYTES if back else 2 * wide * BYTES
        u = max(u, ((band - 1) * stride + 2 * reach + 1) * (width + 2 * reach))
        v = max(v, band * columns * (1 if back else blocks))
        g = max(g, band * columns * wide)
        kept = _halved(2 * reach, stride)
        spread = max(spread, blocks * (kept + band + reach) * (columns + 2 * reach))
        grad_u = max(grad_u, (stride * band + reach) * width)
    places = []
    for size in (u, v, g, spread, grad_u) if back else (u, v):
        places.append(end)
        end += size * BYTES + _SLACK
    return ends, places + [0] * (5 - len(places)), end, sums


def _launch(
    back: bool,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    pairs: Sequence[Pair],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    found: Sequence[Tensor | None],
) -> None:
    images, channels, height, width = x.shape
    shapes = tuple((p.depthwise.shape[-1], p.stride, p.dilation, p.pointwise.shape[0]) for p in pairs)
    divided, places, size, sums = _plan(back, channels, height, width, shapes)
    chunks = min(images, _CHUNKS)
    threads = min(torch.get_num_threads(), chunks)
    base = workspace(size * threads + sums * (chunks if back else images))
    held = [None if tensor is None else tensor.contiguous() for tensor in (scale, shift)]
    table = [0, 0, 0, chunks, images, channels, height, width, len(pairs), *map(_address, (x, *held, *found[:3]))]
    table += [any(tensor is not None for tensor in found[:3]), base, size, base + size * threads, sums, *places]
    for index, (pair, shape, (band, at_sums, at_weights)) in enumerate(zip(pairs, shapes, divided, strict=True)):
        weights = [pair.depthwise.contiguous(), pair.pointwise.contiguous()]
        held += weights
        table += [*shape, band, *map(_address, weights), *map(_address, outputs[3 * index : 3 * index + 3])]
        table += [
            *map(_address, grads[3 * index : 3 * index + 3]),
            *map(_address, found[3 + 2 * index : 5 + 2 * index]),
        ]
        table += [at_sums, at_weights]
    arguments = (ctypes.c_int64 * len(table))(*table)
    _runners()[back](ctypes.addressof(arguments), threads)


def workspace(size: int) -> int:
    """The address of memory of this thread, kept for the next call."""
    memory: Tensor | None = getattr(_local, "memory", None)
    if memory is None or memory.numel() < size + 64:
        memory = _local.memory = torch.empty(size + 64, dtype=torch.uint8)
    return -(-memory.data_ptr() // 64) * 64


@functools.cache
def _runners() -> tuple[Callable[[int, int], None], Callable[[int, int], None]]:
    from nasengine import kernels

    return runner(kernels.forward_address()), runner(kernels.backward_address())


def runner(kernel: int) -> Callable[[int, int], None]:
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
