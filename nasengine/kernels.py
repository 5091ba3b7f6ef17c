"""Compiled loops of `nasengine.separable`, for channels-last float32 on CPUs. Needs numba; imported on first use.

An image at a time stays in the caches of its core, in blocks of 16 channels: `u`, the rectified input with its border of
zeros; `v`, its depthwise convolution; `g`, the gradient of the output. A tile is eight pixels of 16 channels in eight
vectors, so that no sum leaves the registers before it is done.

Threads take chunks of images from a counter. Sums over images are kept a chunk and added in the order of the chunks
by whoever is last, so that the bits depend neither on the number of threads nor on their timing.

Both kernels take the address of a table of int64, see `Table`: sizes, and addresses in bytes.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Final

from numba import cfunc, njit, types

from nasengine.tiles import (
    blocks,
    clear,
    correlate,
    moments,
    outer_gradient,
    padded_taps,
    product,
    read,
    rectified,
    tap_gradient,
    write,
)
from nasengine.vectors import (
    add,
    claim,
    fma,
    gate,
    load,
    multiply,
    number,
    put_number,
    put_word,
    store,
    word,
    zeros,
)

NEXT: Final = 0
SLOT: Final = 1
DONE: Final = 2
CHUNKS: Final = 3
IMAGES: Final = 4
CHANNELS: Final = 5
HEIGHT: Final = 6
WIDTH: Final = 7
PAIRS: Final = 8
BORDER: Final = 9
X: Final = 10
SCALE: Final = 11
SHIFT: Final = 12
SCRATCH: Final = 13
SCRATCH_SIZE: Final = 14
PARTIAL: Final = 15
PARTIAL_SIZE: Final = 16
GRAD_X: Final = 17
GRAD_SCALE: Final = 18
GRAD_SHIFT: Final = 19
AT_U: Final = 20
AT_V: Final = 21
AT_G: Final = 22
AT_SPREAD: Final = 23
SPREAD_SIZE: Final = 24
AT_GRAD_U: Final = 25
HEADER: Final = 26

KERNEL: Final = 0
STRIDE: Final = 1
DILATION: Final = 2
OUTPUTS: Final = 3
DEPTHWISE: Final = 4
POINTWISE: Final = 5
Y: Final = 6
MEAN: Final = 7
VAR: Final = 8
GRAD_Y: Final = 9
GRAD_MEAN: Final = 10
GRAD_VAR: Final = 11
GRAD_DEPTHWISE: Final = 12
GRAD_POINTWISE: Final = 13
AT_SUMS: Final = 14
AT_WEIGHTS: Final = 15
PAIR: Final = 16


_inlined = njit(forceinline=True, error_model="numpy")
_apart = njit(error_model="numpy")


@_inlined
def _at(table: int, entry: int) -> int:
    return word(table + 8 * entry)


@_inlined
def _pair(table: int, index: int) -> int:
    return table + 8 * (HEADER + PAIR * index)


@_inlined
def _halved(size: int, stride: int) -> int:
    return (size + stride - 1) // stride


@_inlined
def _taps(pair: int) -> int:
    return _at(pair, KERNEL) * _at(pair, KERNEL)


@_inlined
def _forward_taps(pair: int, scratch: int) -> int:
    """Where the taps of the depthwise convolution are listed: (offset in u, offset of the weight)."""
    return scratch + _at(pair, AT_WEIGHTS)


@_inlined
def _backward_taps(pair: int, scratch: int) -> int:
    """Where the taps of its input gradient are listed, for every phase of the stride: how many, and the list."""
    return _forward_taps(pair, scratch) + 16 * padded_taps(_taps(pair))


@_inlined
def _depthwise(pair: int, scratch: int) -> int:
    """Where the weights (blocks, taps, 16) of the depthwise convolution are."""
    stride = _at(pair, STRIDE)
    return _backward_taps(pair, scratch) + stride * stride * 16 * (1 + _taps(pair))


@_inlined
def _pointwise(pair: int, scratch: int, channels: int) -> int:
    """Where the matrix (blocks of outputs, channels, 16) is, followed by its transpose (blocks, outputs, 16)."""
    return _depthwise(pair, scratch) + blocks(channels) * padded_taps(_taps(pair)) * 64


@_inlined
def _transpose(pair: int, scratch: int, channels: int) -> int:
    return _pointwise(pair, scratch, channels) + blocks(_at(pair, OUTPUTS)) * channels * 64


@_inlined
def _statistics(pair: int, scratch: int, channels: int) -> int:
    """Where (2, blocks of outputs, 16) are: what the gradients of mean and var add to that of y, as g += a + b * y."""
    return _transpose(pair, scratch, channels) + blocks(channels) * _at(pair, OUTPUTS) * 64


@_apart
def _list_taps(table: int, pair: int, scratch: int) -> None:
    kernel, stride, dilation = _at(pair, KERNEL), _at(pair, STRIDE), _at(pair, DILATION)
    border, width, reach = _at(table, BORDER), _at(table, WIDTH), dilation * (kernel - 1) // 2
    row, to = (width + 2 * border) * 64, _forward_taps(pair, scratch)
    for tap in range(kernel * kernel):
        y, x = tap // kernel * dilation - reach + border, tap % kernel * dilation - reach + border
        put_word(to + 16 * tap, y * row + x * 64)
        put_word(to + 16 * tap + 8, 64 * tap)
    for tap in range(kernel * kernel, padded_taps(kernel * kernel)):
        put_word(to + 16 * tap, 0)
    row, to = (_halved(width, stride) + 2 * reach) * 64, _backward_taps(pair, scratch)
    for phase in range(stride * stride):
        count = 0
        for tap in range(kernel * kernel):
            y = phase // stride + reach - tap // kernel * dilation
            x = phase % stride + reach - tap % kernel * dilation
            if y % stride == 0 and x % stride == 0:
                count += 1
                put_word(to + 16 * count, (y // stride + reach) * row + (x // stride + reach) * 64)
                put_word(to + 16 * count + 8, 64 * tap)
        put_word(to, count)
        to += 16 * (1 + kernel * kernel)


@_apart
def _pack(table: int, pair: int, scratch: int) -> None:
    """Copies the weights of a pair into blocks of 16 channels, zeros behind the last."""
    channels, outputs, taps = _at(table, CHANNELS), _at(pair, OUTPUTS), _taps(pair)
    _list_taps(table, pair, scratch)
    to, weight = _depthwise(pair, scratch), _at(pair, DEPTHWISE)
    clear(to, _statistics(pair, scratch, channels) - to)
    for channel in range(channels):
        lane = to + channel // 16 * padded_taps(taps) * 64 + channel % 16 * 4
        for tap in range(taps):
            put_number(lane + tap * 64, number(weight + (channel * taps + tap) * 4))
    matrix, transpose = _pointwise(pair, scratch, channels), _transpose(pair, scratch, channels)
    weight = _at(pair, POINTWISE)
    for output in range(outputs):
        column = matrix + output // 16 * channels * 64 + output % 16 * 4
        row = transpose + output * 64
        for channel in range(channels):
            value = number(weight + (output * channels + channel) * 4)
            put_number(column + channel * 64, value)
            put_number(row + channel // 16 * outputs * 64 + channel % 16 * 4, value)


@_apart
def _begin(table: int) -> int:
    """Prepares the scratch memory of the thread that asks, and gives its address."""
    scratch = _at(table, SCRATCH) + claim(table + 8 * SLOT) * _at(table, SCRATCH_SIZE)
    clear(scratch + _at(table, AT_U), _at(table, AT_V) - _at(table, AT_U))
    for index in range(_at(table, PAIRS)):
        _pack(table, _pair(table, index), scratch)
    return scratch


@_inlined
def _first_image(table: int, chunk: int) -> int:
    return chunk * _at(table, IMAGES) // _at(table, CHUNKS)


@_apart
def _rectify(table: int, image: int, scratch: int) -> None:
    channels, height, width = _at(table, CHANNELS), _at(table, HEIGHT), _at(table, WIDTH)
    x, u = _at(table, X) + image * height * width * channels * 4, scratch + _at(table, AT_U)
    rectified(x, channels, height, width, _at(table, SCALE), _at(table, SHIFT), u, _at(table, BORDER))


@_apart
def _convolve(table: int, pair: int, block: int, scratch: int) -> None:
    """v of 16 channels."""
    height, width, border, stride = _at(table, HEIGHT), _at(table, WIDTH), _at(table, BORDER), _at(pair, STRIDE)
    row, rows, columns = (width + 2 * border) * 64, _halved(height, stride), _halved(width, stride)
    u = scratch + _at(table, AT_U) + block * (height + 2 * border) * row
    v = scratch + _at(table, AT_V) + block * rows * columns * 64
    weights = _depthwise(pair, scratch) + block * padded_taps(_taps(pair)) * 64
    taps = _forward_taps(pair, scratch)
    correlate(u, stride * row, stride * 64, taps, _taps(pair), weights, v, columns * 64, 64, rows, columns, False)


@_apart
def _forward_pair(table: int, pair: int, image: int, scratch: int) -> None:
    channels, outputs, stride = _at(table, CHANNELS), _at(pair, OUTPUTS), _at(pair, STRIDE)
    pixels = _halved(_at(table, HEIGHT), stride) * _halved(_at(table, WIDTH), stride)
    for block in range(blocks(channels)):
        _convolve(table, pair, block, scratch)
    v, matrix = scratch + _at(table, AT_V), _pointwise(pair, scratch, channels)
    sums = _at(table, PARTIAL) + image * _at(table, PARTIAL_SIZE) + _at(pair, AT_SUMS)
    for block in range(blocks(outputs)):
        lanes = min(16, outputs - 16 * block)
        y = _at(pair, Y) + image * pixels * outputs * 4 + block * 64
        product(v, pixels * 64, channels, matrix + block * channels * 64, y, 0, outputs * 4, 1, pixels, lanes)
        moments(y, outputs * 4, pixels, lanes, sums + block * 128)


@_apart
def _mean_and_variance(table: int, pair: int) -> None:
    """Of all images, from their sums and squared deviations (Chan, Golub, LeVeque 1979)."""
    images, stride = _at(table, IMAGES), _at(pair, STRIDE)
    pixels = _halved(_at(table, HEIGHT), stride) * _halved(_at(table, WIDTH), stride)
    for channel in range(_at(pair, OUTPUTS)):
        first = _at(table, PARTIAL) + _at(pair, AT_SUMS) + channel // 16 * 128 + channel % 16 * 4
        total, squares = 0.0, 0.0
        for image in range(images):
            total += types.float64(number(first + image * _at(table, PARTIAL_SIZE)))
        mean = total / (images * pixels)
        for image in range(images):
            sums = first + image * _at(table, PARTIAL_SIZE)
            away = types.float64(number(sums)) / pixels - mean
            squares += types.float64(number(sums + 64)) + pixels * away * away
        put_number(_at(pair, MEAN) + 4 * channel, types.float32(mean))
        put_number(_at(pair, VAR) + 4 * channel, types.float32(squares / (images * pixels)))


@_apart
def _forward(table: int) -> None:
    scratch, chunks = _begin(table), _at(table, CHUNKS)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        for image in range(_first_image(table, chunk), _first_image(table, chunk + 1)):
            _rectify(table, image, scratch)
            for index in range(_at(table, PAIRS)):
                _forward_pair(table, _pair(table, index), image, scratch)
        if claim(table + 8 * DONE) == chunks - 1:
            for index in range(_at(table, PAIRS)):
                _mean_and_variance(table, _pair(table, index))
        chunk = claim(table + 8 * NEXT)


@_apart
def _output_factors(table: int, pair: int, scratch: int) -> None:
    """a = grad_mean / P - b * mean and b = 2 * grad_var / P of P pixels."""
    outputs, stride = _at(pair, OUTPUTS), _at(pair, STRIDE)
    pixels = _halved(_at(table, HEIGHT), stride) * _halved(_at(table, WIDTH), stride) * _at(table, IMAGES)
    to = _statistics(pair, scratch, _at(table, CHANNELS))
    clear(to, 128 * blocks(outputs))
    for output in range(outputs):
        a, b = 0.0, 0.0
        if _at(pair, GRAD_VAR):
            b = 2.0 * number(_at(pair, GRAD_VAR) + 4 * output) / pixels
            a = -b * number(_at(pair, MEAN) + 4 * output)
        if _at(pair, GRAD_MEAN):
            a += number(_at(pair, GRAD_MEAN) + 4 * output) / pixels
        put_number(to + 4 * output, types.float32(a))
        put_number(to + 64 * blocks(outputs) + 4 * output, types.float32(b))


@_apart
def _output_gradient(pair: int, image: int, pixels: int, factors: int, g: int) -> None:
    """g = grad_y + a + b * y of an image, in blocks of 16 channels."""
    outputs = _at(pair, OUTPUTS)
    for block in range(blocks(outputs)):
        lanes, start = min(16, outputs - 16 * block), (image * pixels * outputs + 16 * block) * 4
        a, b = load(factors + 64 * block), load(factors + 64 * (blocks(outputs) + block))
        y, grad_y, to = _at(pair, Y) + start, _at(pair, GRAD_Y) + start, g + block * pixels * 64
        for _ in range(pixels):
            value = fma(b, read(y, lanes), a)
            store(to, add(read(grad_y, lanes), value))
            y += outputs * 4
            grad_y += outputs * 4
            to += 64


@_apart
def _weight_gradients(table: int, pair: int, block: int, sums: int, scratch: int) -> None:
    """Adds to those of the pointwise convolution; v is there."""
    outputs, channels, stride = _at(pair, OUTPUTS), _at(table, CHANNELS), _at(pair, STRIDE)
    pixels = _halved(_at(table, HEIGHT), stride) * _halved(_at(table, WIDTH), stride)
    v, row = scratch + _at(table, AT_V) + block * pixels * 64, blocks(outputs) * 64
    sums += blocks(channels) * padded_taps(_taps(pair)) * 64 + 16 * block * row
    for eight in range(min(2, (channels - 16 * block + 7) // 8)):
        for output in range(blocks(outputs)):
            g = scratch + _at(table, AT_G) + output * pixels * 64
            outer_gradient(v + 32 * eight, g, pixels, sums + 8 * eight * row + 64 * output, row)


@_apart
def _input_gradients(table: int, pair: int, block: int, sums: int, onto: bool, scratch: int) -> None:
    """Adds to those of the depthwise convolution and of u, 16 channels, where they are needed."""
    channels, outputs, stride = _at(table, CHANNELS), _at(pair, OUTPUTS), _at(pair, STRIDE)
    height, width, border = _at(table, HEIGHT), _at(table, WIDTH), _at(table, BORDER)
    rows, columns, reach = (
        _halved(height, stride),
        _halved(width, stride),
        _at(pair, DILATION) * (_at(pair, KERNEL) - 1) // 2,
    )
    g, g_row = scratch + _at(table, AT_SPREAD), (columns + 2 * reach) * 64
    inner = g + reach * g_row + reach * 64
    matrix = _transpose(pair, scratch, channels) + block * outputs * 64
    product(scratch + _at(table, AT_G), rows * columns * 64, outputs, matrix, inner, g_row, 64, rows, columns, 16)
    if _at(pair, GRAD_DEPTHWISE):
        row = (width + 2 * border) * 64
        u = scratch + _at(table, AT_U) + block * (height + 2 * border) * row
        sums += block * padded_taps(_taps(pair)) * 64
        for tap in range(0, _taps(pair), 9):
            taps = _forward_taps(pair, scratch) + 16 * tap
            tap_gradient(u, stride * row, stride * 64, inner, g_row, rows, columns, taps, sums + 64 * tap)
    if _at(table, AT_GRAD_U):
        grad_u = scratch + _at(table, AT_GRAD_U) + block * height * width * 64
        weights = _depthwise(pair, scratch) + block * padded_taps(_taps(pair)) * 64
        taps = _backward_taps(pair, scratch)
        for phase in range(stride * stride):
            y, x = phase // stride, phase % stride
            out, height_left, width_left = grad_u + (y * width + x) * 64, height - y, width - x
            correlate(
                g,
                g_row,
                64,
                taps + 16,
                word(taps),
                weights,
                out,
                stride * width * 64,
                stride * 64,
                _halved(height_left, stride),
                _halved(width_left, stride),
                onto,
            )
            taps += 16 * (1 + _taps(pair))


@_apart
def _backward_pair(table: int, index: int, image: int, partial: int, spread: bool, scratch: int) -> None:
    pair, channels = _pair(table, index), _at(table, CHANNELS)
    stride = _at(pair, STRIDE)
    pixels = _halved(_at(table, HEIGHT), stride) * _halved(_at(table, WIDTH), stride)
    factors = _statistics(pair, scratch, channels)
    _output_gradient(pair, image, pixels, factors, scratch + _at(table, AT_G))
    if spread:
        clear(scratch + _at(table, AT_SPREAD), _at(table, SPREAD_SIZE))
    sums = partial + _at(pair, AT_SUMS)
    for block in range(blocks(channels)):
        if _at(pair, GRAD_POINTWISE):
            _convolve(table, pair, block, scratch)
            _weight_gradients(table, pair, block, sums, scratch)
        if _at(pair, GRAD_DEPTHWISE) or _at(table, AT_GRAD_U):
            _input_gradients(table, pair, block, sums, index > 0, scratch)


@_apart
def _finish_input(table: int, image: int, partial: int, scratch: int) -> None:
    """The gradients of x, and their sums for scale and shift, from that of u."""
    channels, height, width, border = _at(table, CHANNELS), _at(table, HEIGHT), _at(table, WIDTH), _at(table, BORDER)
    row, scaled = (width + 2 * border) * 64, _at(table, SCALE) != 0
    for block in range(blocks(channels)):
        lanes, start = min(16, channels - 16 * block), (image * height * width * channels + 16 * block) * 4
        x, to = _at(table, X) + start, _at(table, GRAD_X) + start
        grad = scratch + _at(table, AT_GRAD_U) + block * height * width * 64
        u = scratch + _at(table, AT_U) + (block * (height + 2 * border) + border) * row + border * 64
        scale, by_x, total = zeros(), load(partial + 128 * block), load(partial + 128 * block + 64)
        if scaled:
            scale = read(_at(table, SCALE) + 64 * block, lanes)
        for y in range(height):
            for column in range(width):
                value = gate(load(grad), load(u + y * row + column * 64))
                grad += 64
                if scaled:
                    by_x = fma(value, read(x, lanes), by_x)
                    total = add(total, value)
                    value = multiply(scale, value)
                if _at(table, GRAD_X):
                    write(to, value, lanes)
                x += channels * 4
                to += channels * 4
        store(partial + 128 * block, by_x)
        store(partial + 128 * block + 64, total)


@_apart
def _finish_weights(table: int) -> None:
    """Adds up what the chunks have, in their order."""
    first, size, channels = _at(table, PARTIAL), _at(table, PARTIAL_SIZE), _at(table, CHANNELS)
    for chunk in range(1, _at(table, CHUNKS)):
        for at in range(first, first + size, 64):
            store(at, add(load(at), load(at + chunk * size)))
    for channel in range(channels):
        lane = first + channel // 16 * 128 + channel % 16 * 4
        if _at(table, GRAD_SCALE):
            put_number(_at(table, GRAD_SCALE) + 4 * channel, number(lane))
        if _at(table, GRAD_SHIFT):
            put_number(_at(table, GRAD_SHIFT) + 4 * channel, number(lane + 64))
    for index in range(_at(table, PAIRS)):
        pair = _pair(table, index)
        outputs, taps, sums = _at(pair, OUTPUTS), _taps(pair), first + _at(pair, AT_SUMS)
        matrix, row = sums + blocks(channels) * padded_taps(taps) * 64, blocks(outputs) * 64
        for channel in range(channels):
            if _at(pair, GRAD_DEPTHWISE):
                lane = sums + channel // 16 * padded_taps(taps) * 64 + channel % 16 * 4
                for tap in range(taps):
                    put_number(_at(pair, GRAD_DEPTHWISE) + (channel * taps + tap) * 4, number(lane + 64 * tap))
            if _at(pair, GRAD_POINTWISE):
                for output in range(outputs):
                    to = _at(pair, GRAD_POINTWISE) + (output * channels + channel) * 4
                    put_number(to, number(matrix + channel * row + output * 4))


@_apart
def _backward(table: int) -> None:
    scratch, chunks = _begin(table), _at(table, CHUNKS)
    pairs, spread = _at(table, PAIRS), True
    for index in range(pairs):
        _output_factors(table, _pair(table, index), scratch)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        partial = _at(table, PARTIAL) + chunk * _at(table, PARTIAL_SIZE)
        clear(partial, _at(table, PARTIAL_SIZE))
        for image in range(_first_image(table, chunk), _first_image(table, chunk + 1)):
            _rectify(table, image, scratch)
            for index in range(pairs):
                _backward_pair(table, index, image, partial, spread, scratch)
                spread = pairs > 1
            if _at(table, AT_GRAD_U):
                _finish_input(table, image, partial, scratch)
        if claim(table + 8 * DONE) == chunks - 1:
            _finish_weights(table)
        chunk = claim(table + 8 * NEXT)


@cfunc(types.void(types.int64), cache=True)
def forward(table: int) -> None:
    _forward(table)


@cfunc(types.void(types.int64), cache=True)
def backward(table: int) -> None:
    _backward(table)
