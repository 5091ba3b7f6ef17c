"""The forward kernel: y with the mean and variance of its channels. Needs numba."""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from numba import types

from nasengine.kernels.bands import begin, convolve_band, first_image, output_pixels
from nasengine.kernels.table import (
    AT_SUMS,
    AT_U,
    AT_V,
    BAND,
    CHANNELS,
    CHUNKS,
    DONE,
    HEIGHT,
    IMAGES,
    MEAN,
    NEXT,
    OUTPUTS,
    PAIRS,
    STRIDE,
    SUMS,
    SUMS_SIZE,
    VAR,
    WIDTH,
    Y,
    blocks,
    entry,
    halved,
    matrix_at,
    pair_at,
    reach,
)
from nasengine.kernels.tiles import (
    apart,
    clear,
    moments,
    multiply_matrix,
    multiply_two,
)
from nasengine.kernels.vectors import BYTES, LANES, claim, number, put_number


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
            convolve_band(table, pair, image, first, last, block, v + block * pixels * BYTES, scratch)
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
    images, pixels, size = entry(table, IMAGES), output_pixels(table, pair), entry(table, SUMS_SIZE)
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
def run_forward(table: int) -> None:
    scratch, chunks, pairs = begin(table), entry(table, CHUNKS), entry(table, PAIRS)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        for image in range(first_image(table, chunk), first_image(table, chunk + 1)):
            for index in range(pairs):
                _forward_image(table, pair_at(table, index), image, scratch)
        if claim(table + 8 * DONE) == chunks - 1:
            for index in range(pairs):
                _finish_forward(table, pair_at(table, index))
        chunk = claim(table + 8 * NEXT)
