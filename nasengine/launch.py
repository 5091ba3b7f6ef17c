"""Runs `nasengine.kernels`: memory for them, the table of what they need, and threads.

The threads are those of PyTorch: the kernels run in its OpenMP team, since a second pool would wait for cores on which
the first one spins. Where that cannot be found they run in threads of Python, without its lock.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from nasengine.errors import reason

_CHUNKS: Final = 16
"""Most parts that a batch is cut into: as many threads are of use."""
_SLACK: Final = 2048  # bytes: tiles read up to seven pixels too far
_PIXELS: Final = 128
"""Of the output, that go through everything at a time: some rows."""
_NO_GRADIENTS: Final = (0,) * 8
_local = threading.local()


class Pair(NamedTuple):
    """A depthwise convolution with the 1x1 convolution behind it.

    Attributes:
        depthwise: weight (C, 1, k, k), k odd; None for the 1x1 convolution alone, of stride 1.
        pointwise: weight (C2, C, 1, 1).
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    depthwise: Tensor | None
    pointwise: Tensor
    stride: int = 1
    dilation: int = 1

    @property
    def kernel(self) -> int:
        """k, 1 without a depthwise convolution."""
        return 1 if self.depthwise is None else self.depthwise.shape[-1]


class Norm(NamedTuple):
    """A batch norm by given moments: weight * (x - mean) / sqrt(var + eps) + bias, all of shape (C,)."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


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


def forward(x: Tensor, norm: Norm | None, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
    """(y, mean, var) of every pair, one after the other; x is (B, C, H, W) in channels-last."""
    images, _, height, width = x.shape
    outputs: list[Tensor] = []
    for pair in pairs:
        channels = pair.pointwise.shape[0]
        shape = (images, channels, _halved(height, pair.stride), _halved(width, pair.stride))
        outputs.append(torch.empty(shape, memory_format=torch.channels_last))
        outputs += torch.empty((2, channels)).unbind()
    nothing = [None] * (5 + 3 * len(pairs))
    _launch(False, x, norm, pairs, outputs, nothing, nothing, nothing)
    return tuple(outputs)


def backward(
    x: Tensor,
    norm: Norm | None,
    pairs: Sequence[Pair],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    scales: Sequence[Tensor | None],
    found: Sequence[Tensor | None],
    onto: bool = False,
) -> None:
    """Writes the gradients of x, of the four tensors of its norm, and of the weights of every pair, if there is memory.

    Args:
        outputs: what `forward` gave.
        grads: theirs; those of y in channels-last, those of mean and var may be None.
        scales: (C2,) of each pair, what the given gradient of its y has to be multiplied by; None for 1.
        found: memory for the gradients, that of x in channels-last; None for what is not needed.
        onto: whether the gradient of x is added to what is there.
    """
    _launch(True, x, norm, pairs, outputs, grads, found, scales, onto)


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


def _launch(
    back: bool,
    x: Tensor,
    norm: Norm | None,
    pairs: Sequence[Pair],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    found: Sequence[Tensor | None],
    scales: Sequence[Tensor | None],
    onto: bool = False,
) -> None:
    images, channels, height, width = x.shape
    shapes = tuple((pair.kernel, pair.stride, pair.dilation, pair.pointwise.shape[0]) for pair in pairs)
    divided, places, size, sums = _plan(back, channels, height, width, shapes)
    chunks = min(images, _CHUNKS)
    threads = min(torch.get_num_threads(), chunks)
    base = _workspace(size * threads + sums * (chunks if back else images))
    held = [None if tensor is None else tensor.contiguous() for tensor in ((None,) * 4 if norm is None else norm[:4])]
    table = [0, 0, 0, chunks, images, channels, height, width, len(pairs), _address(x)]
    table += [_bits(0.0 if norm is None else norm.eps), *map(_address, (*held, *found[:5]))]
    table += [any(tensor is not None for tensor in found[:5]), onto, base, size, base + size * threads, sums, *places]
    for index, (pair, shape, (band, at_sums, at_weights)) in enumerate(zip(pairs, shapes, divided, strict=True)):
        weights = [None if weight is None else weight.contiguous() for weight in pair[:2]]
        held += weights
        table += [*shape, band, *map(_address, weights), *map(_address, outputs[3 * index : 3 * index + 3])]
        table += [
            *map(_address, grads[3 * index : 3 * index + 3]),
            *map(_address, found[5 + 2 * index : 7 + 2 * index]),
        ]
        table += [_address(scales[index]), at_sums, at_weights]
    _run("backward" if back else "forward", table, threads)


def _workspace(size: int) -> int:
    """The address of memory of this thread, kept for the next call."""
    memory: Tensor | None = getattr(_local, "memory", None)
    if memory is None or memory.numel() < size + 64:
        memory = _local.memory = torch.empty(size + 64, dtype=torch.uint8)
    return -(-memory.data_ptr() // 64) * 64


class Term(NamedTuple):
    """A term of a weighted sum: weights[option] times values, or times what their norm makes of them.

    Attributes:
        values: (N, C, H, W) in channels-last.
        weights: (options,).
        norm: with tensors (C,); the variance may be None in place of one that makes no difference.
    """

    values: Tensor
    weights: Tensor
    option: int
    norm: Norm | None

    def dense(self) -> Term:
        """With all tensors as the kernels read them."""
        values = self.values.contiguous(memory_format=torch.channels_last)
        return Term(values, self.weights.contiguous(), self.option, self.norm)


class Found(NamedTuple):
    """Memory for the gradients of a term; None for what is not needed.

    Attributes:
        weights: (options,), of which the one of the term is written.
        scale: (C,), for what the values are multiplied by, which their gradient is to that of the sum.
        onto: whether the gradient of the values is added to what is there.
    """

    values: Tensor | None
    weights: Tensor | None
    option: int
    mean: Tensor | None
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    scale: Tensor | None
    onto: bool = False


def mix(terms: Sequence[Term]) -> Tensor:
    """The sum of all terms, in channels-last."""
    total = torch.empty_like(terms[0].values, memory_format=torch.channels_last)
    _mixing("mixing_forward", terms, total, [None] * len(terms))
    return total


def unmix(terms: Sequence[Term], grad: Tensor, found: Sequence[Found]) -> None:
    """Writes the gradients of all terms, given that of their sum in channels-last."""
    _mixing("mixing_backward", terms, grad, found)


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of values (N, C, H, W) in channels-last."""
    mean, var = torch.empty((2, values.shape[1])).unbind()
    _mixing("moments", [Term(values, mean, 0, Norm(mean, var))], None, [None])
    return mean, var


def _mixing(kernel: str, terms: Sequence[Term], total: Tensor | None, found: Sequence[Found | None]) -> None:
    """Runs a kernel of `nasengine.kernels.mixing` with the table that it reads."""
    from nasengine.kernels.vectors import BYTES, LANES

    values, count = terms[0].values, len(terms)
    channels = values.shape[1]
    pixels, row = values.numel() // channels, -(-channels // LANES) * BYTES
    chunks = min(_CHUNKS, pixels // 64 + 1)
    threads, partial = min(torch.get_num_threads(), chunks), chunks * row * (count + 1)
    base = _workspace(partial + threads * row * (2 * count + 1))
    table = [0, 0, 0, chunks, pixels, channels, count, _address(total), base, base + partial]
    held = []  # lives as long as the kernel reads it
    for term, grads in zip(terms, found, strict=True):
        norm = (None,) * 4 if term.norm is None else tuple(t if t is None else t.contiguous() for t in term.norm[:4])
        held.append(norm)
        table += [_address(term.values), _address(term.weights) + 4 * term.option, *map(_address, norm)]
        table.append(_bits(0.0 if term.norm is None else term.norm.eps))
        if grads is None:
            table += _NO_GRADIENTS
        else:
            weight = _address(grads.weights)
            table += [_address(grads.values), weight and weight + 4 * grads.option, *map(_address, grads[3:8])]
            table.append(grads.onto)
    _run(kernel, table, threads)


def _run(kernel: str, table: Sequence[int], threads: int) -> None:
    arguments = (ctypes.c_int64 * len(table))(*table)
    _runner(kernel)(ctypes.addressof(arguments), threads)


@functools.cache
def _bits(number: float) -> int:
    """A float32 in the first half of an int64."""
    return int.from_bytes(struct.pack("<f", number), "little")


@functools.cache
def _runner(kernel: str) -> Callable[[int, int], None]:
    from nasengine import kernels

    addresses = {
        "forward": kernels.forward_address,
        "backward": kernels.backward_address,
        "mixing_forward": kernels.mixing_forward_address,
        "mixing_backward": kernels.mixing_backward_address,
        "moments": kernels.moments_address,
    }
    return _in_threads(addresses[kernel]())


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
