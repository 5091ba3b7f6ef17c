"""Runs `nasengine.kernels`: memory for them, the table of what they need, and threads.

The threads are those of PyTorch: the kernels run in its OpenMP team, since a second pool would wait for cores on which
the first one spins. Where that cannot be found they run in threads of Python, without its lock.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nasengine.separable import Pair

_CHUNKS: Final = 16
"""Most parts that a batch is cut into: as many threads are of use."""
_SLACK: Final = 2048  # bytes: tiles read up to seven pixels too far
_local = threading.local()


@functools.cache
def compiled() -> bool:
    """Whether numba is there to compile the kernels."""
    try:
        import numba  # noqa: F401
    except ImportError:
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


def _blocks(channels: int) -> int:
    return (channels + 15) // 16


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
    blocks, border = _blocks(channels), max(pair.reach for pair in pairs)
    chunks = min(images, _CHUNKS)
    threads = min(torch.get_num_threads(), chunks)
    grad_u = back and any(tensor is not None for tensor in found[:3])
    held = [tensor.contiguous() for tensor in (scale, shift) if tensor is not None]
    size_u = blocks * (height + 2 * border) * (width + 2 * border) * 64 + _SLACK
    size_v = size_g = size_spread = 0
    table, end, sums = [], 0, 128 * blocks if back else 0
    for index, pair in enumerate(pairs):
        kernel, wide = pair.depthwise.shape[-1], pair.pointwise.shape[0]
        rows, columns = _halved(height, pair.stride), _halved(width, pair.stride)
        taps, wide_blocks = (kernel * kernel + 8) // 9 * 9, _blocks(wide)
        size_v = max(size_v, blocks * rows * columns * 64)
        size_g = max(size_g, wide_blocks * rows * columns * 64)
        size_spread = max(size_spread, (rows + 2 * pair.reach) * (columns + 2 * pair.reach) * 64)
        weights = [pair.depthwise.contiguous(), pair.pointwise.contiguous()]
        held += weights
        table += [kernel, pair.stride, pair.dilation, wide, *map(_address, weights)]
        table += [*map(_address, outputs[3 * index : 3 * index + 3]), *map(_address, grads[3 * index : 3 * index + 3])]
        table += [*map(_address, found[3 + 2 * index : 5 + 2 * index]), sums, end]
        end += 16 * taps + pair.stride**2 * 16 * (1 + kernel * kernel) + 128 * wide_blocks
        end = -(-end // 64) * 64 + blocks * taps * 64 + wide_blocks * channels * 64 + blocks * wide * 64
        sums += blocks * (taps + 16 * wide_blocks) * 64 if back else 128 * wide_blocks
    places = []
    for size in (size_u, size_v + _SLACK, size_g + _SLACK, size_spread + _SLACK, blocks * height * width * 64 + _SLACK):
        places.append(end - 0)
        end += size
    shift_by = 0
    base = _workspace(end * threads + sums * (chunks if back else images))
    head = [0, 0, 0, chunks, images, channels, height, width, len(pairs), border, x.data_ptr()]
    head += [held[0].data_ptr(), held[1].data_ptr()] if scale is not None else [0, 0]
    head += [base, end, base + end * threads, sums, *map(_address, found[:3]), *places[:4], size_spread]
    head += [places[4] if grad_u else shift_by]
    arguments = (ctypes.c_int64 * (len(head) + len(table)))(*head, *table)
    _runners()[back](ctypes.addressof(arguments), threads)


def _workspace(size: int) -> int:
    """The address of memory of this thread, kept for the next call."""
    memory: Tensor | None = getattr(_local, "memory", None)
    if memory is None or memory.numel() < size + 64:
        memory = _local.memory = torch.empty(size + 64, dtype=torch.uint8)
    return -(-memory.data_ptr() // 64) * 64


@functools.cache
def _runners() -> tuple[Callable[[int, int], None], Callable[[int, int], None]]:
    from nasengine import kernels

    return _runner(kernels.forward.address), _runner(kernels.backward.address)


def _runner(kernel: int) -> Callable[[int, int], None]:
    """Calls a kernel with a table in so many threads; they share the work among themselves."""
    alone = ctypes.CFUNCTYPE(None, ctypes.c_int64)(kernel)
    team = _team() or _python_team

    def run(table: int, threads: int) -> None:
        if threads == 1:
            alone(table)
        elif team is _python_team:
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
        return function  # type: ignore[no-any-return]
    return None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CHUNKS, "nasengine-kernels")


def _python_team(alone: Callable[[int], None], table: int, threads: int) -> None:
    others = [_pool().submit(alone, table) for _ in range(threads - 1)]
    alone(table)
    wait(others)
