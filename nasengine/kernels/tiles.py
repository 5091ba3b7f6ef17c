"""Loops of `nasengine.kernels` over pixels whose channels lie in blocks of `LANES`, a vector a pixel. Needs numba.

A tile is eight pixels in eight vectors, so that no sum leaves the registers before it is done. A `row` is the bytes
from a row to the next, a `step` those from a pixel to the next, a `plane` those from a block of channels to the next.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from typing import Any, Final

from numba import njit, types

from nasengine.kernels.unrolled import (
    channels_of_pixels,
    gradients_of_rows,
    load_tile,
    row_of_taps,
    store_tile,
    zero_tile,
)
from nasengine.kernels.vectors import (
    BYTES,
    LANES,
    add,
    filled,
    fma,
    gate,
    load,
    load_first,
    multiply,
    rectified,
    store,
    store_first,
    subtract,
    word,
    zeros,
)

_INSIDE: Final[dict[str, Any]] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inlined: Any = njit(forceinline=True, **_INSIDE)
apart: Any = njit(**_INSIDE)


@inlined
def read(address: int, lanes: int) -> Any:
    """A vector whose first lanes alone are there to be read."""
    return load(address) if lanes == LANES else load_first(address, lanes)


@inlined
def write(address: int, value: Any, lanes: int) -> None:
    """The first lanes of a vector."""
    if lanes == LANES:
        store(address, value)
    else:
        store_first(address, value, lanes)


@inlined
def _write_tile(at: int, step: int, count: int, lanes: int, tile: Any) -> None:
    """The first `count` of eight vectors."""
    if count >= 8 and lanes == LANES:
        store(at, tile[0])
        store(at + step, tile[1])
        store(at + 2 * step, tile[2])
        store(at + 3 * step, tile[3])
        store(at + 4 * step, tile[4])
        store(at + 5 * step, tile[5])
        store(at + 6 * step, tile[6])
        store(at + 7 * step, tile[7])
        return
    store_first(at, tile[0], lanes)
    if count > 1:
        store_first(at + step, tile[1], lanes)
    if count > 2:
        store_first(at + 2 * step, tile[2], lanes)
    if count > 3:
        store_first(at + 3 * step, tile[3], lanes)
    if count > 4:
        store_first(at + 4 * step, tile[4], lanes)
    if count > 5:
        store_first(at + 5 * step, tile[5], lanes)
    if count > 6:
        store_first(at + 6 * step, tile[6], lanes)
    if count > 7:
        store_first(at + 7 * step, tile[7], lanes)


@apart
def clear(address: int, size: int) -> None:
    """Zeros."""
    for at in range(address, address + size, BYTES):
        store(at, zeros())


@apart
def move(source: int, to: int, size: int) -> None:
    """Copies to a lower address."""
    for at in range(0, size, BYTES):
        store(to + at, load(source + at))


@apart
def rectify(
    x: int, x_row: int, x_step: int, lanes: int, norm: int, u: int, u_row: int, rows: int, columns: int
) -> None:
    """u = relu(x), or relu(scale * (x - mean) + shift) where the address of mean, scale and shift is not 0."""
    mean, scale, shift = zeros(), zeros(), zeros()
    if norm:
        mean, scale, shift = load(norm), load(norm + BYTES), load(norm + 2 * BYTES)
    for y in range(rows):
        at, to = x + y * x_row, u + y * u_row
        for _ in range(columns):
            value = read(at, lanes)
            if norm:
                value = fma(scale, subtract(value, mean), shift)
            store(to, rectified(value))
            at += x_step
            to += BYTES


@inlined
def _tap(sums: Any, at: int, step: int, weight: int) -> Any:
    """Eight sums with one more product each: eight pixels times a weight."""
    w = load(weight)
    a0, a1 = fma(load(at), w, sums[0]), fma(load(at + step), w, sums[1])
    a2, a3 = fma(load(at + 2 * step), w, sums[2]), fma(load(at + 3 * step), w, sums[3])
    a4, a5 = fma(load(at + 4 * step), w, sums[4]), fma(load(at + 5 * step), w, sums[5])
    a6, a7 = fma(load(at + 6 * step), w, sums[6]), fma(load(at + 7 * step), w, sums[7])
    return a0, a1, a2, a3, a4, a5, a6, a7


@apart
def correlate(
    source: int, row: int, step: int, taps: int, count: int, weights: int,
    out: int, out_row: int, out_step: int, rows: int, columns: int,
) -> None:  # fmt: skip
    """Sums of taps, each an offset into the source and one of the weight, at every pixel."""
    for y in range(rows):
        for x in range(0, columns, 8):
            base, sums = source + y * row + x * step, zero_tile(8)
            for tap in range(taps, taps + 16 * count, 16):
                sums = _tap(sums, base + word(tap), step, weights + word(tap + 8))
            _write_tile(out + y * out_row + x * out_step, out_step, columns - x, LANES, sums)


@inlined
def is_unrolled(kernel: int, stride: int, dilation: int) -> bool:
    """Whether there is more than the general loop for it."""
    return stride == 1 and dilation <= 2 and (kernel == 3 or kernel == 5)


@apart
def convolve(
    source: int, row: int, kernel: int, stride: int, dilation: int, weights: int,
    out: int, rows: int, columns: int,
) -> bool:  # fmt: skip
    """The same for a whole kernel from its first tap on to a dense output, if it is one that is unrolled; whether."""
    if not is_unrolled(kernel, stride, dilation):
        return False
    for y in range(rows):
        for x in range(0, columns, 8):
            at, sums, w = source + y * row + x * BYTES, zero_tile(8), weights
            for _ in range(kernel):
                if kernel == 3:
                    sums = row_of_taps(sums, at, w, 3, 1, 1) if dilation == 1 else row_of_taps(sums, at, w, 3, 1, 2)
                else:
                    sums = row_of_taps(sums, at, w, 5, 1, 1) if dilation == 1 else row_of_taps(sums, at, w, 5, 1, 2)
                at += dilation * row
                w += kernel * BYTES
            _write_tile(out + (y * columns + x) * BYTES, BYTES, columns - x, LANES, sums)
    return True


@inlined
def _one_block(base: int, plane: int, depth: int, matrix: int) -> Any:
    sums, weights, at, lane = zero_tile(8), matrix, base, 0
    for _ in range(depth // 8):
        sums = channels_of_pixels(sums, at, BYTES, weights, BYTES, 0, 8, 8)
        weights += 8 * BYTES
        lane += 8
        at = base + lane // LANES * plane + lane % LANES * 4
    for _ in range(depth % 8):
        sums = channels_of_pixels(sums, at, BYTES, weights, BYTES, 0, 1, 8)
        weights += BYTES
        at += 4
    return sums


@apart
def multiply_matrix(
    source: int, plane: int, depth: int, matrix: int,
    out: int, out_row: int, out_step: int, rows: int, columns: int, lanes: int,
) -> None:  # fmt: skip
    """A block of outputs, sums over all `depth` channels of dense pixels; the matrix is (depth, LANES)."""
    for y in range(rows):
        for x in range(0, columns, 8):
            sums = _one_block(source + (y * columns + x) * BYTES, plane, depth, matrix)
            _write_tile(out + y * out_row + x * out_step, out_step, columns - x, lanes, sums)


@apart
def multiply_two(
    source: int, plane: int, depth: int, matrix: int, out: int, out_plane: int,
    out_row: int, out_step: int, rows: int, columns: int,
) -> None:  # fmt: skip
    """Two whole blocks of outputs, whose matrices follow each other."""
    second = depth * BYTES
    for y in range(rows):
        for x in range(0, columns, 8):
            base = source + (y * columns + x) * BYTES
            sums, weights, at, lane = zero_tile(16), matrix, base, 0
            for _ in range(depth // 8):
                sums = channels_of_pixels(sums, at, BYTES, weights, BYTES, second, 8, 8)
                weights += 8 * BYTES
                lane += 8
                at = base + lane // LANES * plane + lane % LANES * 4
            for _ in range(depth % 8):
                sums = channels_of_pixels(sums, at, BYTES, weights, BYTES, second, 1, 8)
                weights += BYTES
                at += 4
            to = out + y * out_row + x * out_step
            _write_tile(to, out_step, columns - x, LANES, sums[:8])
            _write_tile(to + out_plane, out_step, columns - x, LANES, sums[8:])


@apart
def moments(y: int, step: int, pixels: int, lanes: int, before: int, sums: int) -> None:
    """Goes on with the means, and the sums of squared deviations from them, of as many pixels before (Chan 1979)."""
    a0, a1, a2, a3 = zeros(), zeros(), zeros(), zeros()
    whole = pixels // 4 * 4
    for p in range(0, whole, 4):
        at = y + p * step
        a0, a1 = add(a0, read(at, lanes)), add(a1, read(at + step, lanes))
        a2, a3 = add(a2, read(at + 2 * step, lanes)), add(a3, read(at + 3 * step, lanes))
    for p in range(whole, pixels):
        a0 = add(a0, read(y + p * step, lanes))
    mean = multiply(add(add(a0, a1), add(a2, a3)), filled(types.float32(1.0 / pixels)))
    a0, a1, a2, a3 = zeros(), zeros(), zeros(), zeros()
    for p in range(0, whole, 4):
        at = y + p * step
        d0, d1 = subtract(read(at, lanes), mean), subtract(read(at + step, lanes), mean)
        d2, d3 = subtract(read(at + 2 * step, lanes), mean), subtract(read(at + 3 * step, lanes), mean)
        a0, a1, a2, a3 = fma(d0, d0, a0), fma(d1, d1, a1), fma(d2, d2, a2), fma(d3, d3, a3)
    for p in range(whole, pixels):
        d0 = subtract(read(y + p * step, lanes), mean)
        a0 = fma(d0, d0, a0)
    squares = add(add(a0, a1), add(a2, a3))
    if before > 0:
        away, share = subtract(mean, load(sums)), types.float32(pixels / (before + pixels))
        squares = add(squares, load(sums + BYTES))
        squares = fma(multiply(away, away), filled(types.float32(before * share)), squares)
        mean = fma(away, filled(share), load(sums))
    store(sums, mean)
    store(sums + BYTES, squares)


@apart
def tap_gradients(
    u: int, row: int, step: int, g: int, g_row: int, rows: int, columns: int, taps: int, sums: int
) -> None:
    """Adds to the gradients of nine taps the products of u with the gradient of v, at all pixels."""
    o0, o1, o2 = word(taps), word(taps + 16), word(taps + 32)
    o3, o4, o5 = word(taps + 48), word(taps + 64), word(taps + 80)
    o6, o7, o8 = word(taps + 96), word(taps + 112), word(taps + 128)
    s = load_tile(sums, BYTES, 9)
    for y in range(rows):
        at, to = u + y * row, g + y * g_row
        for _ in range(columns):
            b = load(to)
            a0, a1, a2 = fma(load(at + o0), b, s[0]), fma(load(at + o1), b, s[1]), fma(load(at + o2), b, s[2])
            a3, a4, a5 = fma(load(at + o3), b, s[3]), fma(load(at + o4), b, s[4]), fma(load(at + o5), b, s[5])
            a6, a7, a8 = fma(load(at + o6), b, s[6]), fma(load(at + o7), b, s[7]), fma(load(at + o8), b, s[8])
            s = (a0, a1, a2, a3, a4, a5, a6, a7, a8)
            at += step
            to += BYTES
    store_tile(sums, BYTES, s)


def _gradients(kernel: int, taps: int, dilation: int) -> Any:
    @apart
    def gradients(u: int, row: int, g: int, g_row: int, rows: int, columns: int, sums: int) -> None:
        s = load_tile(sums, BYTES, taps)
        for y in range(rows):
            at, to = u + y * row, g + y * g_row
            for _ in range(columns // 4):
                s = gradients_of_rows(s, at, dilation * row, to, kernel, 1, dilation, 4)
                at += 4 * BYTES
                to += 4 * BYTES
            for _ in range(columns % 4):
                s = gradients_of_rows(s, at, dilation * row, to, kernel, 1, dilation, 1)
                at += BYTES
                to += BYTES
        store_tile(sums, BYTES, s)

    return gradients


_nine, _nine_apart = _gradients(3, 9, 1), _gradients(3, 9, 2)
_fifteen, _fifteen_apart = _gradients(5, 15, 1), _gradients(5, 15, 2)
_ten, _ten_apart = _gradients(5, 10, 1), _gradients(5, 10, 2)


@apart
def kernel_gradients(
    u: int, row: int, kernel: int, stride: int, dilation: int, g: int, g_row: int, rows: int, columns: int, sums: int
) -> bool:
    """The same for a whole kernel from its first tap on, where it is one that is unrolled; whether it is."""
    if not is_unrolled(kernel, stride, dilation):
        return False
    below, further = u + 3 * dilation * row, sums + 15 * BYTES
    if kernel == 3 and dilation == 1:
        _nine(u, row, g, g_row, rows, columns, sums)
    elif kernel == 3:
        _nine_apart(u, row, g, g_row, rows, columns, sums)
    elif dilation == 1:
        _fifteen(u, row, g, g_row, rows, columns, sums)
        _ten(below, row, g, g_row, rows, columns, further)
    else:
        _fifteen_apart(u, row, g, g_row, rows, columns, sums)
        _ten_apart(below, row, g, g_row, rows, columns, further)
    return True


@apart
def matrix_gradient(v: int, g: int, pixels: int, sums: int, row: int) -> None:
    """Adds to eight rows of a matrix the products of eight channels of v and a block of the gradient of y."""
    s = load_tile(sums, row, 8)
    for _ in range(pixels):
        s = channels_of_pixels(s, v, 4, g, 0, 0, 1, 8)
        v += BYTES
        g += BYTES
    store_tile(sums, row, s)


@apart
def matrix_gradient_of_two(v: int, g: int, plane: int, pixels: int, sums: int, row: int) -> None:
    """The same for two blocks of the gradient."""
    s, t = load_tile(sums, row, 8), load_tile(sums + BYTES, row, 8)
    both = s + t
    for _ in range(pixels):
        both = channels_of_pixels(both, v, 4, g, 0, plane, 1, 8)
        v += BYTES
        g += BYTES
    store_tile(sums, row, both[:8])
    store_tile(sums + BYTES, row, both[8:])


@apart
def output_gradient(
    y: int, grad: int, step: int, pixels: int, lanes: int, a: int, apart: int, by: float, g: int
) -> None:
    """g = by * scale * grad + a + b * (y - mean) of dense pixels, without the last where y is 0.

    The vectors a, b, mean and scale are `apart`.
    """
    constant, slope, mean = load(a), load(a + apart), load(a + 2 * apart)
    scale = multiply(filled(types.float32(by)), load(a + 3 * apart))
    for _ in range(pixels):
        value = constant
        if y:
            value = fma(slope, subtract(read(y, lanes), mean), constant)
            y += step
        store(g, fma(scale, read(grad, lanes), value))
        grad += step
        g += BYTES


@apart
def input_gradient(
    x: int, x_row: int, x_step: int, lanes: int, norm: int, grad: int, rows: int, columns: int,
    to: int, onto: bool, sums: int,
) -> None:  # fmt: skip
    """The gradient of x (at `to`, unless that is 0) from that of u (dense), and the sums that the norm needs."""
    mean, scale, shift, by_x, total = zeros(), zeros(), zeros(), zeros(), zeros()
    if norm:
        mean, scale, shift = load(norm), load(norm + BYTES), load(norm + 2 * BYTES)
        by_x, total = load(sums), load(sums + BYTES)
    for y in range(rows):
        for column in range(columns):
            offset = y * x_row + column * x_step
            input = read(x + offset, lanes)
            value = load(grad)
            if norm:
                input = subtract(input, mean)
                value = gate(value, fma(scale, input, shift))
                by_x, total = fma(value, input, by_x), add(total, value)
                value = multiply(scale, value)
            else:
                value = gate(value, input)
            if to:
                if onto:
                    value = add(value, read(to + offset, lanes))
                write(to + offset, value, lanes)
            grad += BYTES
    if norm:
        store(sums, by_x)
        store(sums + BYTES, total)
