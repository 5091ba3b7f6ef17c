"""The compiled kernels of `nasengine.separable`, forward and backward, for channels-last float32. Needs numba.

A band of rows of an image goes through everything while it is in the cache of its core: u, the rectified input; v, its
depthwise convolution; y; and back: g, the gradient of y, those of v, of u and of x, and of the weights. Only x, y and
their gradients are ever in memory.

Threads take chunks of images from a counter. Sums over images are kept a chunk and added in the order of the chunks
by whoever is last, so that the bits depend neither on the number of threads nor on their timing.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-call"

from __future__ import annotations

import functools
from typing import Final

from numba import cfunc, types

from nasengine.kernel_table import (
    digest_of,
    AT_G,
    AT_GRAD_U,
    AT_SPREAD,
    AT_SUMS,
    AT_U,
    AT_V,
    BAND,
    CHANNELS,
    CHUNKS,
    DEPTHWISE,
    DONE,
    GRAD_DEPTHWISE,
    GRAD_MEAN,
    GRAD_POINTWISE,
    GRAD_SCALE,
    GRAD_SHIFT,
    GRAD_U,
    GRAD_VAR,
    GRAD_X,
    GRAD_Y,
    HEIGHT,
    IMAGES,
    KERNEL,
    MEAN,
    NEXT,
    OUTPUTS,
    PAIRS,
    SCALE,
    SCRATCH,
    SCRATCH_SIZE,
    SHIFT,
    SLOT,
    STRIDE,
    SUMS,
    SUMS_SIZE,
    VAR,
    WIDTH,
    DILATION,
    X,
    Y,
    backward_taps,
    blocks,
    depthwise_at,
    entry,
    factors_at,
    forward_taps,
    halved,
    matrix_at,
    pack,
    pair_at,
    reach,
    tap_count,
    tap_rows,
    transpose_at,
)
from nasengine.tiles import (
    apart,
    clear,
    convolve,
    correlate,
    inlined,
    input_gradient,
    kernel_gradients,
    matrix_gradient,
    matrix_gradient_of_two,
    moments,
    move,
    multiply_matrix,
    multiply_two,
    output_gradient,
    rectify,
    tap_gradients,
)
from nasengine.vectors import BYTES, LANES, add, claim, load, number, put_number, store


@apart
def _begin(table: int) -> int:
    """Prepares the scratch memory of the thread that asks, and gives its address."""
    scratch = entry(table, SCRATCH) + claim(table + 8 * SLOT) * entry(table, SCRATCH_SIZE)
    for index in range(entry(table, PAIRS)):
        pack(table, pair_at(table, index), scratch)
    return scratch  # type: ignore[no-any-return]


@inlined
def _first_image(table: int, chunk: int) -> int:
    return chunk * entry(table, IMAGES) // entry(table, CHUNKS)


@inlined
def _output_pixels(table: int, pair: int) -> int:
    stride = entry(pair, STRIDE)
    return halved(entry(table, HEIGHT), stride) * halved(entry(table, WIDTH), stride)


@apart
def _rectify_band(table: int, pair: int, image: int, first: int, last: int, block: int, scratch: int) -> None:
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
def _convolve(table: int, pair: int, rows: int, block: int, v: int, scratch: int) -> None:
    """v of a block of channels from u."""
    width, stride = entry(table, WIDTH), entry(pair, STRIDE)
    row, columns = (width + 2 * reach(pair)) * BYTES, halved(width, stride)
    u, taps, weights = scratch + entry(table, AT_U), forward_taps(pair, scratch), depthwise_at(pair, scratch, block)
    if not convolve(u, row, entry(pair, KERNEL), stride, entry(pair, DILATION), weights, v, rows, columns):
        correlate(
            u, stride * row, stride * BYTES, taps, tap_count(pair), weights, v, columns * BYTES, BYTES, rows, columns
        )


@apart
def _forward_image(table: int, pair: int, image: int, scratch: int) -> None:
    channels, outputs, stride = entry(table, CHANNELS), entry(pair, OUTPUTS), entry(pair, STRIDE)
    height, columns, step = halved(entry(table, HEIGHT), stride), halved(entry(table, WIDTH), stride), outputs * 4
    band, v, u_row = entry(pair, BAND), scratch + entry(table, AT_V), entry(table, WIDTH) + 2 * reach(pair)
    sums = entry(table, SUMS) + image * entry(table, SUMS_SIZE) + entry(pair, AT_SUMS)
    clear(scratch + entry(table, AT_U), ((band - 1) * stride + 2 * reach(pair) + 1) * u_row * BYTES)
    for first in range(0, height, band):
        last = min(height, first + band)
        pixels = (last - first) * columns
        for block in range(blocks(channels)):
            _rectify_band(table, pair, image, first, last, block, scratch)
            _convolve(table, pair, last - first, block, v + block * pixels * BYTES, scratch)
        for block in range(blocks(outputs)):
            lanes, matrix = min(LANES, outputs - block * LANES), matrix_at(pair, scratch, channels, block)
            y = entry(pair, Y) + (image * height + first) * columns * step + block * BYTES
            if lanes == LANES and block % 2 == 0 and (block + 2) * LANES <= outputs:
                multiply_two(v, pixels * BYTES, channels, matrix, y, BYTES, 0, step, 1, pixels)
            elif block % 2 == 0 or lanes < LANES:
                multiply_matrix(v, pixels * BYTES, channels, matrix, y, 0, step, 1, pixels, lanes)
            moments(y, step, pixels, lanes, first * columns, sums + block * 2 * BYTES)


@apart
def _finish_forward(table: int, pair: int) -> None:
    """Mean and variance over all images, from those of each."""
    images, pixels, size = entry(table, IMAGES), _output_pixels(table, pair), entry(table, SUMS_SIZE)
    for channel in range(entry(pair, OUTPUTS)):
        first = entry(table, SUMS) + entry(pair, AT_SUMS) + channel // LANES * 2 * BYTES + channel % LANES * 4
        mean, squares = 0.0, 0.0
        for image in range(images):
            mean += types.float64(number(first + image * size))
        mean /= images
        for image in range(images):
            away = types.float64(number(first + image * size)) - mean
            squares += types.float64(number(first + image * size + BYTES)) + pixels * away * away
        put_number(entry(pair, MEAN) + 4 * channel, types.float32(mean))
        put_number(entry(pair, VAR) + 4 * channel, types.float32(squares / (images * pixels)))


@apart
def _forward(table: int) -> None:
    scratch, chunks, pairs = _begin(table), entry(table, CHUNKS), entry(table, PAIRS)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        for image in range(_first_image(table, chunk), _first_image(table, chunk + 1)):
            for index in range(pairs):
                _forward_image(table, pair_at(table, index), image, scratch)
        if claim(table + 8 * DONE) == chunks - 1:
            for index in range(pairs):
                _finish_forward(table, pair_at(table, index))
        chunk = claim(table + 8 * NEXT)


@apart
def _output_factors(table: int, pair: int, scratch: int) -> None:
    """a = grad_mean / P - b * mean and b = 2 * grad_var / P of P pixels."""
    outputs, pixels = entry(pair, OUTPUTS), _output_pixels(table, pair) * entry(table, IMAGES)
    to, second = factors_at(pair, scratch, entry(table, CHANNELS)), blocks(outputs) * BYTES
    clear(to, 2 * second)
    for output in range(outputs):
        a, b = 0.0, 0.0
        if entry(pair, GRAD_VAR):
            b = 2.0 * number(entry(pair, GRAD_VAR) + 4 * output) / pixels
            a = -b * number(entry(pair, MEAN) + 4 * output)
        if entry(pair, GRAD_MEAN):
            a += number(entry(pair, GRAD_MEAN) + 4 * output) / pixels
        put_number(to + 4 * output, types.float32(a))
        put_number(to + second + 4 * output, types.float32(b))


@apart
def _weight_gradients(table: int, pair: int, rows: int, block: int, sums: int, scratch: int) -> None:
    """Adds those of both convolutions for a block of channels of u, given the gradients of y and v."""
    channels, outputs, stride, width = (
        entry(table, CHANNELS),
        entry(pair, OUTPUTS),
        entry(pair, STRIDE),
        entry(table, WIDTH),
    )
    columns, around, v = halved(width, stride), reach(pair), scratch + entry(table, AT_V)
    row, pixels = blocks(outputs) * BYTES, rows * halved(width, stride)
    if entry(pair, GRAD_POINTWISE):
        _convolve(table, pair, rows, block, v, scratch)
        matrix = sums + (blocks(channels) * tap_rows(pair) + block * LANES * blocks(outputs)) * BYTES
        for eight in range(0, min(LANES, channels - block * LANES), 8):
            for output in range(0, blocks(outputs) - 1, 2):
                g, to = scratch + entry(table, AT_G) + output * pixels * BYTES, matrix + eight * row + output * BYTES
                matrix_gradient_of_two(v + 4 * eight, g, pixels * BYTES, pixels, to, row)
            if blocks(outputs) % 2:
                output = blocks(outputs) - 1
                g, to = scratch + entry(table, AT_G) + output * pixels * BYTES, matrix + eight * row + output * BYTES
                matrix_gradient(v + 4 * eight, g, pixels, to, row)
    if entry(pair, GRAD_DEPTHWISE):
        u, u_row = scratch + entry(table, AT_U), stride * (width + 2 * around) * BYTES
        g, g_row = _spread(table, pair, block, scratch), (columns + 2 * around) * BYTES
        g += _kept_rows(pair) * g_row + around * BYTES
        kernel, dilation, to = entry(pair, KERNEL), entry(pair, DILATION), sums + block * tap_rows(pair) * BYTES
        if not kernel_gradients(u, u_row, kernel, stride, dilation, g, g_row, rows, columns, to):
            for tap in range(0, tap_count(pair), 9):
                taps = forward_taps(pair, scratch) + 16 * tap
                tap_gradients(u, u_row, stride * BYTES, g, g_row, rows, columns, taps, to + tap * BYTES)


@inlined
def _kept_rows(pair: int) -> int:
    """Rows of the gradient of v that the next band needs again."""
    return halved(2 * reach(pair), entry(pair, STRIDE))


@inlined
def _spread_size(table: int, pair: int) -> int:
    """Bytes of a block of channels: the rows kept, the band, and zeros below the image."""
    columns = halved(entry(table, WIDTH), entry(pair, STRIDE)) + 2 * reach(pair)
    return (_kept_rows(pair) + entry(pair, BAND) + reach(pair)) * columns * BYTES


@inlined
def _spread(table: int, pair: int, block: int, scratch: int) -> int:
    return scratch + entry(table, AT_SPREAD) + block * _spread_size(table, pair)


@apart
def _spread_band(table: int, pair: int, first: int, last: int, block: int, scratch: int) -> None:
    """The gradient of v of a block of channels, below the rows that are kept."""
    channels, outputs, stride = entry(table, CHANNELS), entry(pair, OUTPUTS), entry(pair, STRIDE)
    columns, around, rows = halved(entry(table, WIDTH), stride), reach(pair), last - first
    row, kept = (columns + 2 * around) * BYTES, _kept_rows(pair)
    spread = _spread(table, pair, block, scratch)
    if first:
        move(spread + entry(pair, BAND) * row, spread, kept * row)
    else:
        clear(spread, _spread_size(table, pair))
    matrix, to = transpose_at(pair, scratch, channels, block), spread + kept * row + around * BYTES
    g = scratch + entry(table, AT_G)
    multiply_matrix(g, rows * columns * BYTES, outputs, matrix, to, row, BYTES, rows, columns, LANES)
    clear(spread + (kept + rows) * row, around * row)


@apart
def _strided_input_band(table: int, pair: int, top: int, bottom: int, block: int, spread: int, scratch: int) -> None:
    """The gradient of u, a phase of the stride after the other."""
    width, stride, around = entry(table, WIDTH), entry(pair, STRIDE), reach(pair)
    row, weights = (halved(width, stride) + 2 * around) * BYTES, depthwise_at(pair, scratch, block)
    for phase in range(stride * stride):
        y, x, taps = phase // stride, phase % stride, backward_taps(pair, scratch, phase)
        start = halved(max(0, top - y), stride)
        rows, columns = halved(max(0, bottom - y), stride) - start, halved(max(0, width - x), stride)
        out = scratch + entry(table, AT_GRAD_U) + ((start * stride + y - top) * width + x) * BYTES
        correlate(
            spread + start * row + around * BYTES, row, BYTES, taps + 16, entry(taps, 0), weights,
            out, stride * width * BYTES, stride * BYTES, rows, columns,
        )  # fmt: skip


@apart
def _input_band(
    table: int, pair: int, image: int, first: int, last: int, block: int, onto: bool, sums: int, scratch: int
) -> None:
    """The gradient of x where all that it needs of the gradient of v is there."""
    channels, height, width = entry(table, CHANNELS), entry(table, HEIGHT), entry(table, WIDTH)
    stride, around = entry(pair, STRIDE), reach(pair)
    top, bottom = max(0, stride * first - around), max(0, stride * last - around)
    if last == halved(height, stride):
        bottom = height
    row = (halved(width, stride) + 2 * around) * BYTES
    grad, kernel = scratch + entry(table, AT_GRAD_U), entry(pair, KERNEL)
    spread = _spread(table, pair, block, scratch) + (_kept_rows(pair) - first) * row
    reverse, rows = depthwise_at(pair, scratch, blocks(channels) + block), bottom - top
    done = False
    if stride == 1:
        source = spread + (top - around) * row
        done = convolve(source, row, kernel, stride, entry(pair, DILATION), reverse, grad, rows, width)
    if not done:
        _strided_input_band(table, pair, top, bottom, block, spread, scratch)
    offset, lanes = (image * height + top) * width * channels * 4 + block * BYTES, min(LANES, channels - block * LANES)
    to, a, b = entry(table, GRAD_X), entry(table, SCALE), entry(table, SHIFT)
    if to:
        to += offset
    if a:
        a, b = a + block * BYTES, b + block * BYTES
    input_gradient(
        entry(table, X) + offset, width * channels * 4, channels * 4, lanes, a, b, grad, bottom - top, width,
        to, onto, sums + block * 2 * BYTES,
    )  # fmt: skip


@apart
def _backward_image(table: int, index: int, image: int, sums: int, scratch: int) -> None:
    pair, channels = pair_at(table, index), entry(table, CHANNELS)
    outputs, stride, band = entry(pair, OUTPUTS), entry(pair, STRIDE), entry(pair, BAND)
    height, columns, step = halved(entry(table, HEIGHT), stride), halved(entry(table, WIDTH), stride), outputs * 4
    factors, u_row = factors_at(pair, scratch, channels), entry(table, WIDTH) + 2 * reach(pair)
    by_weights, own = entry(pair, GRAD_DEPTHWISE) or entry(pair, GRAD_POINTWISE), sums + entry(pair, AT_SUMS)
    clear(scratch + entry(table, AT_U), ((band - 1) * stride + 2 * reach(pair) + 1) * u_row * BYTES)
    for first in range(0, height, band):
        last = min(height, first + band)
        pixels, start = (last - first) * columns, (image * height + first) * columns * step
        for block in range(blocks(outputs)):
            at, g = start + block * BYTES, scratch + entry(table, AT_G) + block * pixels * BYTES
            a, lanes = factors + block * BYTES, min(LANES, outputs - block * LANES)
            y, grad = entry(pair, Y) + at, entry(pair, GRAD_Y) + at
            output_gradient(y, grad, step, pixels, lanes, a, a + blocks(outputs) * BYTES, g)
        for block in range(blocks(channels)):
            if entry(pair, GRAD_DEPTHWISE) or entry(table, GRAD_U):
                _spread_band(table, pair, first, last, block, scratch)
            if by_weights:
                _rectify_band(table, pair, image, first, last, block, scratch)
                _weight_gradients(table, pair, last - first, block, own, scratch)
            if entry(table, GRAD_U):
                _input_band(table, pair, image, first, last, block, index > 0, sums, scratch)


@apart
def _finish_backward(table: int) -> None:
    """Adds up what the chunks have, in their order."""
    first, size, channels = entry(table, SUMS), entry(table, SUMS_SIZE), entry(table, CHANNELS)
    for chunk in range(1, entry(table, CHUNKS)):
        for at in range(first, first + size, BYTES):
            store(at, add(load(at), load(at + chunk * size)))
    for channel in range(channels):
        lane = first + channel // LANES * 2 * BYTES + channel % LANES * 4
        if entry(table, GRAD_SCALE):
            put_number(entry(table, GRAD_SCALE) + 4 * channel, number(lane))
        if entry(table, GRAD_SHIFT):
            put_number(entry(table, GRAD_SHIFT) + 4 * channel, number(lane + BYTES))
    for index in range(entry(table, PAIRS)):
        pair = pair_at(table, index)
        outputs, taps, sums = entry(pair, OUTPUTS), tap_count(pair), first + entry(pair, AT_SUMS)
        matrix, row = sums + blocks(channels) * tap_rows(pair) * BYTES, blocks(outputs) * BYTES
        for channel in range(channels):
            if entry(pair, GRAD_DEPTHWISE):
                lane = sums + channel // LANES * tap_rows(pair) * BYTES + channel % LANES * 4
                for tap in range(taps):
                    put_number(entry(pair, GRAD_DEPTHWISE) + (channel * taps + tap) * 4, number(lane + BYTES * tap))
            if entry(pair, GRAD_POINTWISE):
                for output in range(outputs):
                    to = entry(pair, GRAD_POINTWISE) + (output * channels + channel) * 4
                    put_number(to, number(matrix + channel * row + output * 4))


@apart
def _backward(table: int) -> None:
    scratch, chunks, pairs = _begin(table), entry(table, CHUNKS), entry(table, PAIRS)
    for index in range(pairs):
        _output_factors(table, pair_at(table, index), scratch)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        sums = entry(table, SUMS) + chunk * entry(table, SUMS_SIZE)
        clear(sums, entry(table, SUMS_SIZE))
        for image in range(_first_image(table, chunk), _first_image(table, chunk + 1)):
            for index in range(pairs):
                _backward_image(table, index, image, sums, scratch)
        if claim(table + 8 * DONE) == chunks - 1:
            _finish_backward(table)
        chunk = claim(table + 8 * NEXT)


_SOURCES: Final = ("vectors.py", "unrolled.py", "tiles.py", "kernel_table.py", "kernels.py")
_KERNEL: Final = types.void(types.int64)


@functools.cache
def forward() -> int:
    """The address of the forward kernel, a C function of the address of a table; compiled once a machine."""
    digest = digest_of(_SOURCES)

    @cfunc(_KERNEL, cache=True)
    def separable_forward(table: int) -> None:
        if digest:
            _forward(table)

    return separable_forward.address  # type: ignore[no-any-return]


@functools.cache
def backward() -> int:
    """The address of the backward kernel, which writes the gradients of whatever has an address for them."""
    digest = digest_of(_SOURCES)

    @cfunc(_KERNEL, cache=True)
    def separable_backward(table: int) -> None:
        if digest:
            _backward(table)

    return separable_backward.address  # type: ignore[no-any-return]
