"""Loops of `nasengine.kernels` over images whose channels lie in blocks of 16. Needs numba.

A tile is eight pixels of 16 channels in eight vectors, so that no sum leaves the registers before it is done. Sizes
with `row` and `step` are bytes from a row, and from a pixel, to the next.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-call, no-any-unimported"

from __future__ import annotations

from typing import Any

from numba import njit, types

from nasengine.vectors import (
    add,
    filled,
    fma,
    gate,
    load,
    load_first,
    multiply,
    splat,
    store,
    store_first,
    subtract,
    word,
    zeros,
)

_inlined = njit(forceinline=True, error_model="numpy")
_apart = njit(error_model="numpy")


@_inlined
def blocks(channels: int) -> int:
    return (channels + 15) // 16


@_inlined
def padded_taps(taps: int) -> int:
    return (taps + 8) // 9 * 9


@_inlined
def read(address: int, lanes: int) -> Any:
    return load(address) if lanes == 16 else load_first(address, lanes)


@_inlined
def write(address: int, value: Any, lanes: int) -> None:
    if lanes == 16:
        store(address, value)
    else:
        store_first(address, value, lanes)


@_inlined
def _write_tile(
    at: int, step: int, count: int, lanes: int, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any
) -> None:
    """The first `count` of eight vectors."""
    if count >= 8:
        write(at, a0, lanes)
        write(at + step, a1, lanes)
        write(at + 2 * step, a2, lanes)
        write(at + 3 * step, a3, lanes)
        write(at + 4 * step, a4, lanes)
        write(at + 5 * step, a5, lanes)
        write(at + 6 * step, a6, lanes)
        write(at + 7 * step, a7, lanes)
        return
    write(at, a0, lanes)
    if count > 1:
        write(at + step, a1, lanes)
    if count > 2:
        write(at + 2 * step, a2, lanes)
    if count > 3:
        write(at + 3 * step, a3, lanes)
    if count > 4:
        write(at + 4 * step, a4, lanes)
    if count > 5:
        write(at + 5 * step, a5, lanes)
    if count > 6:
        write(at + 6 * step, a6, lanes)


@_apart
def clear(address: int, size: int) -> None:
    for at in range(address, address + size, 64):
        store(at, zeros())


@_apart
def rectified(x: int, channels: int, height: int, width: int, scale: int, shift: int, u: int, border: int) -> None:
    """u = relu(scale * x + shift) of an image inside its border, in blocks of 16 channels."""
    row = (width + 2 * border) * 64
    for block in range(blocks(channels)):
        lanes = min(16, channels - 16 * block)
        a, b = zeros(), zeros()
        if scale:
            a, b = read(scale + 64 * block, lanes), read(shift + 64 * block, lanes)
        for y in range(height):
            to = u + (block * (height + 2 * border) + y + border) * row + border * 64
            at = x + y * width * channels * 4 + block * 64
            for _ in range(width):
                value = read(at, lanes)
                if scale:
                    value = fma(a, value, b)
                store(to, gate(value, value))
                at += channels * 4
                to += 64


@_apart
def correlate(
    source: int,
    row: int,
    step: int,
    taps: int,
    count: int,
    weights: int,
    out: int,
    out_row: int,
    out_step: int,
    rows: int,
    columns: int,
    onto: bool,
) -> None:
    """Sums of `count` taps (offset into the source, offset of the weight) at every pixel of 16 channels."""
    for y in range(rows):
        for x in range(0, columns, 8):
            base = source + y * row + x * step
            to = out + y * out_row + x * out_step
            a0, a1, a2, a3, a4, a5, a6, a7 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
            if onto:
                a0, a1, a2, a3 = load(to), load(to + out_step), load(to + 2 * out_step), load(to + 3 * out_step)
                a4, a5, a6 = load(to + 4 * out_step), load(to + 5 * out_step), load(to + 6 * out_step)
                a7 = load(to + 7 * out_step)
            for tap in range(taps, taps + 16 * count, 16):
                at = base + word(tap)
                w = load(weights + word(tap + 8))
                a0 = fma(load(at), w, a0)
                a1 = fma(load(at + step), w, a1)
                a2 = fma(load(at + 2 * step), w, a2)
                a3 = fma(load(at + 3 * step), w, a3)
                a4 = fma(load(at + 4 * step), w, a4)
                a5 = fma(load(at + 5 * step), w, a5)
                a6 = fma(load(at + 6 * step), w, a6)
                a7 = fma(load(at + 7 * step), w, a7)
            _write_tile(to, out_step, columns - x, 16, a0, a1, a2, a3, a4, a5, a6, a7)


@_apart
def product(
    source: int,
    plane: int,
    depth: int,
    matrix: int,
    out: int,
    out_row: int,
    out_step: int,
    rows: int,
    columns: int,
    lanes: int,
) -> None:
    """16 sums over `depth` channels of dense pixels, in planes of 16, at every pixel; the matrix is (depth, 16)."""
    for y in range(rows):
        for x in range(0, columns, 8):
            a0, a1, a2, a3, a4, a5, a6, a7 = zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
            w = matrix
            for block in range(blocks(depth)):
                at = source + block * plane + (y * columns + x) * 64
                for _ in range(min(16, depth - 16 * block)):
                    b = load(w)
                    a0 = fma(splat(at), b, a0)
                    a1 = fma(splat(at + 64), b, a1)
                    a2 = fma(splat(at + 128), b, a2)
                    a3 = fma(splat(at + 192), b, a3)
                    a4 = fma(splat(at + 256), b, a4)
                    a5 = fma(splat(at + 320), b, a5)
                    a6 = fma(splat(at + 384), b, a6)
                    a7 = fma(splat(at + 448), b, a7)
                    w += 64
                    at += 4
            to = out + y * out_row + x * out_step
            _write_tile(to, out_step, columns - x, lanes, a0, a1, a2, a3, a4, a5, a6, a7)


@_apart
def moments(y: int, step: int, pixels: int, lanes: int, sums: int) -> None:
    """Sums, and sums of squared deviations from their mean, of 16 channels of an image."""
    a0, a1, a2, a3 = zeros(), zeros(), zeros(), zeros()
    whole = pixels // 4 * 4
    for p in range(0, whole, 4):
        at = y + p * step
        a0 = add(a0, read(at, lanes))
        a1 = add(a1, read(at + step, lanes))
        a2 = add(a2, read(at + 2 * step, lanes))
        a3 = add(a3, read(at + 3 * step, lanes))
    for p in range(whole, pixels):
        a0 = add(a0, read(y + p * step, lanes))
    total = add(add(a0, a1), add(a2, a3))
    mean = multiply(total, filled(types.float32(1.0 / pixels)))
    a0, a1, a2, a3 = zeros(), zeros(), zeros(), zeros()
    for p in range(0, whole, 4):
        at = y + p * step
        d0, d1 = subtract(read(at, lanes), mean), subtract(read(at + step, lanes), mean)
        d2, d3 = subtract(read(at + 2 * step, lanes), mean), subtract(read(at + 3 * step, lanes), mean)
        a0, a1, a2, a3 = fma(d0, d0, a0), fma(d1, d1, a1), fma(d2, d2, a2), fma(d3, d3, a3)
    for p in range(whole, pixels):
        d0 = subtract(read(y + p * step, lanes), mean)
        a0 = fma(d0, d0, a0)
    store(sums, total)
    store(sums + 64, add(add(a0, a1), add(a2, a3)))


@_apart
def tap_gradient(
    u: int, row: int, step: int, g: int, g_row: int, rows: int, columns: int, taps: int, sums: int
) -> None:
    """Adds to the gradients of nine taps the products of 16 channels of u with the gradient of v, over an image."""
    o0, o1, o2 = word(taps), word(taps + 16), word(taps + 32)
    o3, o4, o5 = word(taps + 48), word(taps + 64), word(taps + 80)
    o6, o7, o8 = word(taps + 96), word(taps + 112), word(taps + 128)
    a0, a1, a2 = load(sums), load(sums + 64), load(sums + 128)
    a3, a4, a5 = load(sums + 192), load(sums + 256), load(sums + 320)
    a6, a7, a8 = load(sums + 384), load(sums + 448), load(sums + 512)
    for y in range(rows):
        at, to = u + y * row, g + y * g_row
        for _ in range(columns):
            b = load(to)
            a0 = fma(load(at + o0), b, a0)
            a1 = fma(load(at + o1), b, a1)
            a2 = fma(load(at + o2), b, a2)
            a3 = fma(load(at + o3), b, a3)
            a4 = fma(load(at + o4), b, a4)
            a5 = fma(load(at + o5), b, a5)
            a6 = fma(load(at + o6), b, a6)
            a7 = fma(load(at + o7), b, a7)
            a8 = fma(load(at + o8), b, a8)
            at += step
            to += 64
    store(sums, a0)
    store(sums + 64, a1)
    store(sums + 128, a2)
    store(sums + 192, a3)
    store(sums + 256, a4)
    store(sums + 320, a5)
    store(sums + 384, a6)
    store(sums + 448, a7)
    store(sums + 512, a8)


@_apart
def outer_gradient(v: int, g: int, pixels: int, sums: int, row: int) -> None:
    """Adds to eight rows of a matrix the products of eight channels of v with 16 of the gradient, over an image."""
    a0, a1, a2, a3 = load(sums), load(sums + row), load(sums + 2 * row), load(sums + 3 * row)
    a4, a5, a6, a7 = load(sums + 4 * row), load(sums + 5 * row), load(sums + 6 * row), load(sums + 7 * row)
    for p in range(pixels):
        b = load(g + p * 64)
        at = v + p * 64
        a0 = fma(splat(at), b, a0)
        a1 = fma(splat(at + 4), b, a1)
        a2 = fma(splat(at + 8), b, a2)
        a3 = fma(splat(at + 12), b, a3)
        a4 = fma(splat(at + 16), b, a4)
        a5 = fma(splat(at + 20), b, a5)
        a6 = fma(splat(at + 24), b, a6)
        a7 = fma(splat(at + 28), b, a7)
    _write_tile(sums, row, 8, 16, a0, a1, a2, a3, a4, a5, a6, a7)
