"""The backward kernel: the gradients that are needed, of x, of scale and shift, and of the weights. Needs numba."""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from numba import types

from nasengine.kernels.bands import begin, convolve_band, first_image, norm_at, output_pixels, rectify_band
from nasengine.kernels.norms import inverse_deviation, optional, put
from nasengine.kernels.table import (
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
    DILATION,
    DONE,
    EPS,
    GAMMA,
    GRAD_BETA,
    GRAD_DEPTHWISE,
    GRAD_GAMMA,
    GRAD_MEAN,
    GRAD_NORM_MEAN,
    GRAD_NORM_VAR,
    GRAD_POINTWISE,
    GRAD_SCALE,
    GRAD_U,
    GRAD_VAR,
    GRAD_WEIGHTS,
    GRAD_X,
    GRAD_Y,
    HEIGHT,
    IMAGES,
    KERNEL,
    MEAN,
    NEXT,
    NORM_VAR,
    ONTO,
    OUTPUTS,
    PAIRS,
    STRIDE,
    SUMS,
    SUMS_SIZE,
    WIDTH,
    X,
    Y,
    backward_taps,
    blocks,
    depthwise_at,
    entry,
    factors_at,
    forward_taps,
    halved,
    pair_at,
    reach,
    tap_count,
    tap_rows,
    transpose_at,
)
from nasengine.kernels.tiles import (
    apart,
    clear,
    convolve,
    correlate,
    inlined,
    input_gradient,
    kernel_gradients,
    matrix_gradient,
    matrix_gradient_of_two,
    move,
    multiply_matrix,
    multiply_two,
    output_gradient,
    tap_gradients,
)
from nasengine.kernels.vectors import BYTES, LANES, add, claim, load, number, put_number, store


@apart
def _output_factors(table: int, pair: int, scratch: int) -> None:
    """a = grad_mean / P, b = 2 * grad_var / P of P pixels, the mean, and the scale."""
    outputs, pixels = entry(pair, OUTPUTS), output_pixels(table, pair) * entry(table, IMAGES)
    to, second = factors_at(pair, scratch, entry(table, CHANNELS)), blocks(outputs) * BYTES
    clear(to, 4 * second)
    for output in range(outputs):
        put(to, output, optional(entry(pair, GRAD_MEAN), output, 0.0) / pixels)
        put(to + second, output, 2.0 * optional(entry(pair, GRAD_VAR), output, 0.0) / pixels)
        put(to + 2 * second, output, optional(entry(pair, MEAN), output, 0.0))
        put(to + 3 * second, output, optional(entry(pair, GRAD_SCALE), output, 1.0))


@apart
def _weight_gradients(
    table: int, pair: int, image: int, first: int, last: int, block: int, sums: int, scratch: int
) -> None:
    """Adds those of both convolutions for a block of channels of u, given the gradients of y and v."""
    channels, outputs, stride, width = (
        entry(table, CHANNELS),
        entry(pair, OUTPUTS),
        entry(pair, STRIDE),
        entry(table, WIDTH),
    )
    columns, around, v, rows = halved(width, stride), reach(pair), scratch + entry(table, AT_V), last - first
    row, pixels = blocks(outputs) * BYTES, rows * halved(width, stride)
    if not entry(pair, GRAD_POINTWISE):
        rectify_band(table, pair, image, first, last, block, scratch + entry(table, AT_U), scratch)
    else:
        convolve_band(table, pair, image, first, last, block, v, scratch)
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
def _spread_band(table: int, pair: int, first: int, last: int, block: int, count: int, scratch: int) -> None:
    """The gradient of v of one or two blocks of channels, below the rows that are kept."""
    channels, outputs, stride = entry(table, CHANNELS), entry(pair, OUTPUTS), entry(pair, STRIDE)
    columns, around, rows = halved(entry(table, WIDTH), stride), reach(pair), last - first
    row, kept, size = (columns + 2 * around) * BYTES, _kept_rows(pair), _spread_size(table, pair)
    spread, g, plane = _spread(table, pair, block, scratch), scratch + entry(table, AT_G), rows * columns * BYTES
    for each in range(spread, spread + count * size, size):
        if first:
            move(each + entry(pair, BAND) * row, each, kept * row)
            clear(each + (kept + rows) * row, around * row)
        else:
            clear(each, size)
    matrix, to = transpose_at(pair, scratch, channels, block), spread + kept * row + around * BYTES
    if count == 2:
        multiply_two(g, plane, outputs, matrix, to, size, row, BYTES, rows, columns)
    else:
        multiply_matrix(g, plane, outputs, matrix, to, row, BYTES, rows, columns, LANES)


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
    done, source = False, spread + (top - around) * row
    if not entry(pair, DEPTHWISE):
        done, grad = True, source
    elif stride == 1:
        done = convolve(source, row, kernel, stride, entry(pair, DILATION), reverse, grad, rows, width)
    if not done:
        _strided_input_band(table, pair, top, bottom, block, spread, scratch)
    offset, lanes = (image * height + top) * width * channels * 4 + block * BYTES, min(LANES, channels - block * LANES)
    to = entry(table, GRAD_X)
    if to:
        to += offset
    input_gradient(
        entry(table, X) + offset, width * channels * 4, channels * 4, lanes, norm_at(table, scratch, block), grad,
        bottom - top, width, to, onto, sums + block * 2 * BYTES,
    )  # fmt: skip


@apart
def _backward_image(table: int, index: int, image: int, sums: int, scratch: int) -> None:
    pair, channels = pair_at(table, index), entry(table, CHANNELS)
    outputs, stride, band = entry(pair, OUTPUTS), entry(pair, STRIDE), entry(pair, BAND)
    height, columns, step = halved(entry(table, HEIGHT), stride), halved(entry(table, WIDTH), stride), outputs * 4
    factors, u_row = factors_at(pair, scratch, channels), entry(table, WIDTH) + 2 * reach(pair)
    by_weights, own = entry(pair, GRAD_DEPTHWISE) or entry(pair, GRAD_POINTWISE), sums + entry(pair, AT_SUMS)
    by = optional(entry(pair, GRAD_WEIGHTS), image, 1.0)
    clear(scratch + entry(table, AT_U), ((band - 1) * stride + 2 * reach(pair) + 1) * u_row * BYTES)
    for first in range(0, height, band):
        last = min(height, first + band)
        pixels, start = (last - first) * columns, (image * height + first) * columns * step
        for block in range(blocks(outputs)):
            at, g = start + block * BYTES, scratch + entry(table, AT_G) + block * pixels * BYTES
            a, lanes = factors + block * BYTES, min(LANES, outputs - block * LANES)
            y, grad = entry(pair, Y) + at if entry(pair, GRAD_VAR) else 0, entry(pair, GRAD_Y) + at
            output_gradient(y, grad, step, pixels, lanes, a, blocks(outputs) * BYTES, by, g)
        for block in range(blocks(channels)):
            if (entry(pair, GRAD_DEPTHWISE) or entry(table, GRAD_U)) and block % 2 == 0:
                _spread_band(table, pair, first, last, block, min(2, blocks(channels) - block), scratch)
            if by_weights:
                _weight_gradients(table, pair, image, first, last, block, own, scratch)
            if entry(table, GRAD_U):
                _input_band(table, pair, image, first, last, block, index > 0 or entry(table, ONTO) != 0, sums, scratch)


@apart
def _finish_backward(table: int) -> None:
    """Adds up what the chunks have, in their order."""
    first, size, channels = entry(table, SUMS), entry(table, SUMS_SIZE), entry(table, CHANNELS)
    for chunk in range(1, entry(table, CHUNKS)):
        for at in range(first, first + size, BYTES):
            store(at, add(load(at), load(at + chunk * size)))
    for channel in range(channels if entry(table, NORM_VAR) else 0):
        _finish_norm(table, channel, first + channel // LANES * 2 * BYTES + channel % LANES * 4)
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


@inlined
def _finish_norm(table: int, channel: int, sums: int) -> None:
    inverse = inverse_deviation(entry(table, NORM_VAR), channel, types.float64(number(table + 8 * EPS)))
    scale = inverse * optional(entry(table, GAMMA), channel, 1.0)
    by_x, total = types.float64(number(sums)), types.float64(number(sums + BYTES))
    put(entry(table, GRAD_NORM_MEAN), channel, -scale * total)
    put(entry(table, GRAD_NORM_VAR), channel, -0.5 * scale * inverse * inverse * by_x)
    put(entry(table, GRAD_GAMMA), channel, inverse * by_x)
    put(entry(table, GRAD_BETA), channel, total)


@apart
def run_backward(table: int) -> None:
    scratch, chunks, pairs = begin(table), entry(table, CHUNKS), entry(table, PAIRS)
    for index in range(pairs):
        _output_factors(table, pair_at(table, index), scratch)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        sums = entry(table, SUMS) + chunk * entry(table, SUMS_SIZE)
        clear(sums, entry(table, SUMS_SIZE))
        for image in range(first_image(table, chunk), first_image(table, chunk + 1)):
            for index in range(pairs):
                _backward_image(table, index, image, sums, scratch)
        if claim(table + 8 * DONE) == chunks - 1:
            _finish_backward(table)
        chunk = claim(table + 8 * NEXT)
