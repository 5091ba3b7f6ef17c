"""What both kernels do: threads begin, and u and v of a band of rows. Needs numba."""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from nasengine.kernels.table import (
    AT_U,
    CHANNELS,
    CHUNKS,
    DILATION,
    HEIGHT,
    IMAGES,
    KERNEL,
    PAIRS,
    SCALE,
    SCRATCH,
    SCRATCH_SIZE,
    SHIFT,
    SLOT,
    STRIDE,
    WIDTH,
    X,
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
from nasengine.kernels.vectors import BYTES, LANES, claim


@apart
def begin(table: int) -> int:
    """Prepares the scratch memory of the thread that asks, and gives its address."""
    scratch = entry(table, SCRATCH) + claim(table + 8 * SLOT) * entry(table, SCRATCH_SIZE)
    for index in range(entry(table, PAIRS)):
        pack(table, pair_at(table, index), scratch)
    return scratch


@inlined
def first_image(table: int, chunk: int) -> int:
    return chunk * entry(table, IMAGES) // entry(table, CHUNKS)


@inlined
def output_pixels(table: int, pair: int) -> int:
    stride = entry(pair, STRIDE)
    return halved(entry(table, HEIGHT), stride) * halved(entry(table, WIDTH), stride)


@apart
def rectify_band(table: int, pair: int, image: int, first: int, last: int, block: int, scratch: int) -> None:
    """u of a block of channels for some rows of the output, zeros where they reach out of the image."""
    channels, height, width = entry(table, CHANNELS), entry(table, HEIGHT), entry(table, WIDTH)
    around, stride, lanes = reach(pair), entry(pair, STRIDE), min(LANES, channels - block * LANES)
    row, u, x_row = (width + 2 * around) * BYTES, scratch + entry(table, AT_U), width * channels * 4
    top, bottom = first * stride - around, (last - 1) * stride + around + 1
    above, below = max(0, -top), max(0, bottom - height)
    clear(u, above * row)
    clear(u + (bottom - top - below) * row, below * row)
    x = entry(table, X) + (image * height + top + above) * x_row + block * BYTES
    a, b = entry(table, SCALE), entry(table, SHIFT)
    if a:
        a, b = a + block * BYTES, b + block * BYTES
    rows = bottom - top - above - below
    rectify(x, x_row, channels * 4, lanes, a, b, u + above * row + around * BYTES, row, rows, width)


@apart
def convolve_band(table: int, pair: int, rows: int, block: int, v: int, scratch: int) -> None:
    """v of a block of channels from u."""
    width, stride = entry(table, WIDTH), entry(pair, STRIDE)
    row, columns = (width + 2 * reach(pair)) * BYTES, halved(width, stride)
    u, taps, weights = scratch + entry(table, AT_U), forward_taps(pair, scratch), depthwise_at(pair, scratch, block)
    if not convolve(u, row, entry(pair, KERNEL), stride, entry(pair, DILATION), weights, v, rows, columns):
        correlate(
            u, stride * row, stride * BYTES, taps, tap_count(pair), weights, v, columns * BYTES, BYTES, rows, columns
        )
