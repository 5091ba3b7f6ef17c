"""What the kernels are told, and how they lay out the weights. Needs numba.

A table of int64: the header, then the entries of each pair. Addresses are in bytes; a gradient at address 0 is not
needed, or not given. `AT_...` are offsets into the scratch memory of a thread, or into the sums of a chunk.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from typing import Any, Final

from numba import types

from nasengine.kernels.tiles import apart, clear, inlined
from nasengine.kernels.vectors import BYTES, LANES, Signature, intrinsic, number, put_number, put_word, word_at

NEXT: Final = 0
"""Counters that threads share: of chunks begun, of threads, of chunks that are done."""
SLOT: Final = 1
DONE: Final = 2
CHUNKS: Final = 3
IMAGES: Final = 4
CHANNELS: Final = 5
HEIGHT: Final = 6
WIDTH: Final = 7
PAIRS: Final = 8
X: Final = 9
EPS: Final = 10
NORM_MEAN: Final = 11
"""The batch norm of x: its moments and, unless 0, its learned scale and shift."""
NORM_VAR: Final = 12
GAMMA: Final = 13
BETA: Final = 14
GRAD_X: Final = 15
GRAD_NORM_MEAN: Final = 16
GRAD_NORM_VAR: Final = 17
GRAD_GAMMA: Final = 18
GRAD_BETA: Final = 19
GRAD_U: Final = 20
"""Whether one of the five is needed."""
ONTO: Final = 21
"""Whether something is at GRAD_X already, to be added to."""
SCRATCH: Final = 22
SCRATCH_SIZE: Final = 23
SUMS: Final = 24
SUMS_SIZE: Final = 25
AT_NORM: Final = 26
"""Of each block of channels the mean, the scale and the shift: the norm gives scale * (x - mean) + shift."""
AT_U: Final = 27
"""Rows of a block of channels of u in their border of zeros."""
AT_V: Final = 28
"""Rows of v: of all channels forward, of one block backward."""
AT_G: Final = 29
"""Rows of the gradient of y, all channels."""
AT_SPREAD: Final = 30
"""Rows of the gradient of v in their border, all channels, behind the rows that are needed again."""
AT_GRAD_U: Final = 31
"""Rows of a block of channels of the gradient of u."""
HEADER: Final = 32

KERNEL: Final = 0
STRIDE: Final = 1
DILATION: Final = 2
OUTPUTS: Final = 3
BAND: Final = 4
"""Rows of the output that are computed at a time."""
DEPTHWISE: Final = 5
"""0 where there is no depthwise convolution: then kernel and stride are 1, and v is u."""
POINTWISE: Final = 6
Y: Final = 7
MEAN: Final = 8
VAR: Final = 9
GRAD_Y: Final = 10
"""The gradient of y is this, times GRAD_SCALE (C2,) and GRAD_WEIGHTS (images,) where they are not 0, and what GRAD_MEAN
and GRAD_VAR add."""
GRAD_MEAN: Final = 11
GRAD_VAR: Final = 12
GRAD_DEPTHWISE: Final = 13
GRAD_POINTWISE: Final = 14
GRAD_SCALE: Final = 15
GRAD_WEIGHTS: Final = 16
AT_SUMS: Final = 17
AT_WEIGHTS: Final = 18
PAIR: Final = 19


@intrinsic
def entry(typing: Any, table: Any, index: Any) -> Signature:
    """An entry of the header, or of a pair; no compiled function, since there would be one for every index."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        offset = builder.mul(arguments[1], arguments[1].type(8))
        return word_at(builder, builder.add(arguments[0], offset))

    return types.int64(types.int64, types.int64), generate


@inlined
def pair_at(table: int, index: int) -> int:
    """Where the entries of a pair are."""
    return table + 8 * (HEADER + PAIR * index)


@inlined
def blocks(channels: int) -> int:
    """Vectors a pixel."""
    return (channels + LANES - 1) // LANES


@inlined
def halved(size: int, stride: int) -> int:
    """Rows or columns of an output."""
    return (size + stride - 1) // stride


@inlined
def reach(pair: int) -> int:
    """Pixels of padding on each side."""
    return entry(pair, DILATION) * (entry(pair, KERNEL) - 1) // 2


@inlined
def tap_count(pair: int) -> int:
    """Taps of the depthwise convolution."""
    return entry(pair, KERNEL) * entry(pair, KERNEL)


@inlined
def tap_rows(pair: int) -> int:
    """Taps with those that fill up the last nine."""
    return (tap_count(pair) + 8) // 9 * 9


@inlined
def forward_taps(pair: int, scratch: int) -> int:
    """Where the taps of the depthwise convolution are listed: offset in u, offset of the weight."""
    return scratch + entry(pair, AT_WEIGHTS)


@inlined
def backward_taps(pair: int, scratch: int, phase: int) -> int:
    """Where the taps of its input gradient are listed for a phase of the stride: how many, and the list."""
    return forward_taps(pair, scratch) + 16 * (tap_rows(pair) + phase * (1 + tap_count(pair)))


@inlined
def depthwise_at(pair: int, scratch: int, block: int) -> int:
    """Where the weights (taps, LANES) of the depthwise convolution are, and behind all blocks these in reverse."""
    end = backward_taps(pair, scratch, entry(pair, STRIDE) * entry(pair, STRIDE))
    return (end + 63) // 64 * 64 + block * tap_rows(pair) * BYTES


@inlined
def matrix_at(pair: int, scratch: int, channels: int, block: int) -> int:
    """Where the matrix (channels, LANES) of a block of outputs is."""
    return depthwise_at(pair, scratch, 2 * blocks(channels)) + block * channels * BYTES


@inlined
def transpose_at(pair: int, scratch: int, channels: int, block: int) -> int:
    """Where the matrix (outputs, LANES) of a block of channels is."""
    outputs = entry(pair, OUTPUTS)
    return matrix_at(pair, scratch, channels, blocks(outputs)) + block * outputs * BYTES


@inlined
def factors_at(pair: int, scratch: int, channels: int) -> int:
    """Where (4, blocks of outputs, LANES) are: a, b, mean, scale for `output_gradient`."""
    return transpose_at(pair, scratch, channels, blocks(channels))


@apart
def list_taps(table: int, pair: int, scratch: int) -> None:
    """Writes the lists of taps."""
    kernel, stride, dilation = entry(pair, KERNEL), entry(pair, STRIDE), entry(pair, DILATION)
    width, around, taps = entry(table, WIDTH), reach(pair), tap_count(pair)
    row, to = (width + 2 * around) * BYTES, forward_taps(pair, scratch)
    for tap in range(tap_rows(pair)):
        real = tap < taps
        put_word(to + 16 * tap, tap // kernel * dilation * row + tap % kernel * dilation * BYTES if real else 0)
        put_word(to + 16 * tap + 8, BYTES * tap)
    row = (halved(width, stride) + 2 * around) * BYTES
    for phase in range(stride * stride):
        to, count = backward_taps(pair, scratch, phase), 0
        for tap in range(taps):
            y = phase // stride + around - tap // kernel * dilation
            x = phase % stride + around - tap % kernel * dilation
            if y % stride == 0 and x % stride == 0:
                count += 1
                put_word(to + 16 * count, y // stride * row + x // stride * BYTES)
                put_word(to + 16 * count + 8, BYTES * tap)
        put_word(to, count)


@apart
def pack(table: int, pair: int, scratch: int) -> None:
    """Copies the weights of a pair into blocks of channels, with zeros behind the last."""
    channels, outputs, taps = entry(table, CHANNELS), entry(pair, OUTPUTS), tap_count(pair)
    list_taps(table, pair, scratch)
    start, weight = depthwise_at(pair, scratch, 0), entry(pair, DEPTHWISE)
    clear(start, factors_at(pair, scratch, channels) - start)
    for channel in range(channels):
        to = depthwise_at(pair, scratch, channel // LANES) + channel % LANES * 4
        reverse = to + blocks(channels) * tap_rows(pair) * BYTES
        for tap in range(taps if weight else 0):
            value = number(weight + (channel * taps + tap) * 4)
            put_number(to + tap * BYTES, value)
            put_number(reverse + (taps - 1 - tap) * BYTES, value)
    weight = entry(pair, POINTWISE)
    for output in range(outputs):
        column = matrix_at(pair, scratch, channels, output // LANES) + output % LANES * 4
        row = transpose_at(pair, scratch, channels, 0) + output * BYTES
        for channel in range(channels):
            value = number(weight + (output * channels + channel) * 4)
            put_number(column + channel * BYTES, value)
            put_number(row + channel // LANES * outputs * BYTES + channel % LANES * 4, value)
