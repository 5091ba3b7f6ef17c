"""What both kernels do: threads begin, and u and v of a band of rows. Needs numba."""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from numba import types

from nasengine.kernels.norms import inverse_deviation, optional, put
from nasengine.kernels.table import (
    AT_NORM,
    AT_U,
    BETA,
    CHANNELS,
    CHUNKS,
    DEPTHWISE,
    DILATION,
    EPS,
    GAMMA,
    HEIGHT,
    IMAGES,
    KERNEL,
    NORM_MEAN,
    NORM_VAR,
    PAIRS,
    SCRATCH,
    SCRATCH_SIZE,
    SLOT,
    STRIDE,
    WIDTH,
    X,
    blocks,
    depthwise_at,
    entry,
    forward_taps,
    halved,
    pack,
    pair_at,
    reach,
    tap_count,
)
from nasengine.kernels.tiles import (
    apart,
    clear,
    convolve,
    correlate,
    inlined,
    rectify,
)
from nasengine.kernels.vectors import BYTES, LANES, claim, number


@apart
def begin(table: int) -> int:
    """Prepares the scratch memory of the thread that asks, and gives its address."""
    scratch = entry(table, SCRATCH) + claim(table + 8 * SLOT) * entry(table, SCRATCH_SIZE)
    for index in range(entry(table, PAIRS)):
        pack(table, pair_at(table, index), scratch)
    if entry(table, NORM_MEAN):
        _prepare_norm(table, scratch + entry(table, AT_NORM))
    return scratch


@apart
def _prepare_norm(table: int, to: int) -> None:
    eps = types.float64(number(table + 8 * EPS))
    clear(to, 3 * blocks(entry(table, CHANNELS)) * BYTES)
    for channel in range(entry(table, CHANNELS)):
        lane = to + channel // LANES * 3 * BYTES + channel % LANES * 4
        scale = inverse_deviation(entry(table, NORM_VAR), channel, eps) * optional(entry(table, GAMMA), channel, 1.0)
        put(lane, 0, optional(entry(table, NORM_MEAN), channel, 0.0))
        put(lane + BYTES, 0, scale)
        put(lane + 2 * BYTES, 0, optional(entry(table, BETA), channel, 0.0))


@inlined
def norm_at(table: int, scratch: int, block: int) -> int:
    """Where the norm of a block of channels of x is; 0 where there is none."""
    return scratch + entry(table, AT_NORM) + block * 3 * BYTES if entry(table, NORM_MEAN) else 0


@inlined
def first_image(table: int, chunk: int) -> int:
    return chunk * entry(table, IMAGES) // entry(table, CHUNKS)


@inlined
def output_pixels(table: int, pair: int) -> int:
    stride = entry(pair, STRIDE)
    return halved(entry(table, HEIGHT), stride) * halved(entry(table, WIDTH), stride)


@apart
def rectify_band(table: int, pair: int, image: int, first: int, last: int, block: int, u: int, scratch: int) -> None:
    """u of a block of channels for some rows of the output, zeros where they reach out of the image."""
    channels, height, width = entry(table, CHANNELS), entry(table, HEIGHT), entry(table, WIDTH)
    around, stride, lanes = reach(pair), entry(pair, STRIDE), min(LANES, channels - block * LANES)
    row, x_row = (width + 2 * around) * BYTES, width * channels * 4
    top, bottom = first * stride - around, (last - 1) * stride + around + 1
    above, below = max(0, -top), max(0, bottom - height)
    clear(u, above * row)
    clear(u + (bottom - top - below) * row, below * row)
    x = entry(table, X) + (image * height + top + above) * x_row + block * BYTES
    rows, norm = bottom - top - above - below, norm_at(table, scratch, block)
    rectify(x, x_row, channels * 4, lanes, norm, u + above * row + around * BYTES, row, rows, width)


@apart
def convolve_band(table: int, pair: int, image: int, first: int, last: int, block: int, v: int, scratch: int) -> None:
    """v of a block of channels from u, which is v itself without a depthwise convolution."""
    if not entry(pair, DEPTHWISE):
        rectify_band(table, pair, image, first, last, block, v, scratch)
        return
    rectify_band(table, pair, image, first, last, block, scratch + entry(table, AT_U), scratch)
    rows = last - first
    width, stride = entry(table, WIDTH), entry(pair, STRIDE)
    row, columns = (width + 2 * reach(pair)) * BYTES, halved(width, stride)
    u, taps, weights = scratch + entry(table, AT_U), forward_taps(pair, scratch), depthwise_at(pair, scratch, block)
    if not convolve(u, row, entry(pair, KERNEL), stride, entry(pair, DILATION), weights, v, rows, columns):
        correlate(
            u, stride * row, stride * BYTES, taps, tap_count(pair), weights, v, columns * BYTES, BYTES, rows, columns
        )
