"""Compiled loops of `nasengine.mixing`, for channels-last float32 on CPUs. Needs numba; imported on first use.

The kernels take the address of a table of int64, see the names of its entries: sizes, and addresses in bytes. Values
are rows of pixels with channels innermost; a tile is eight pixels of 16 channels, whose sum stays in eight registers
while the terms pass by. Threads take chunks of pixels from a counter; sums over pixels are kept a chunk and added in
the order of the chunks by whoever is last, so that the bits do not depend on the threads.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any, Final

from nasengine.kernels.table import blocks, entry
from nasengine.kernels.tiles import apart, clear, inlined, moments, read, write
from nasengine.kernels.vectors import BYTES, LANES, add, claim, fma, load, multiply, store

NEXT: Final = 0
DONE: Final = 1
CHUNKS: Final = 2
PIXELS: Final = 3
CHANNELS: Final = 4
TERMS: Final = 5
SCALES: Final = 6
SHIFT: Final = 7
SUM: Final = 8
PARTIAL: Final = 9
HEADER: Final = 10
"""Behind it stand the addresses of the values, and in a backward pass those of their gradients, 0 for none."""

_BAND: Final = 128  # pixels that stay in the cache while they are read twice


@inlined
def _value(table: int, term: int) -> int:
    return entry(table, HEADER + term)


@apart
def _sum_tile(table: int, scales: int, shift: Any, at: int, step: int, lanes: int) -> None:
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = shift
    for term in range(entry(table, TERMS)):
        scale, value = read(scales + term * step, lanes), _value(table, term) + at
        a0 = fma(scale, read(value, lanes), a0)
        a1 = fma(scale, read(value + step, lanes), a1)
        a2 = fma(scale, read(value + 2 * step, lanes), a2)
        a3 = fma(scale, read(value + 3 * step, lanes), a3)
        a4 = fma(scale, read(value + 4 * step, lanes), a4)
        a5 = fma(scale, read(value + 5 * step, lanes), a5)
        a6 = fma(scale, read(value + 6 * step, lanes), a6)
        a7 = fma(scale, read(value + 7 * step, lanes), a7)
    to = entry(table, SUM) + at
    write(to, a0, lanes)
    write(to + step, a1, lanes)
    write(to + 2 * step, a2, lanes)
    write(to + 3 * step, a3, lanes)
    write(to + 4 * step, a4, lanes)
    write(to + 5 * step, a5, lanes)
    write(to + 6 * step, a6, lanes)
    write(to + 7 * step, a7, lanes)


@apart
def _sum_pixel(table: int, scales: int, shift: Any, at: int, step: int, lanes: int) -> None:
    total = shift
    for term in range(entry(table, TERMS)):
        total = fma(read(scales + term * step, lanes), read(_value(table, term) + at, lanes), total)
    write(entry(table, SUM) + at, total, lanes)


@apart
def _forward_chunk(table: int, first: int, last: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    for block in range(blocks(channels)):
        lanes, offset = min(LANES, channels - LANES * block), BYTES * block
        scales, shift = entry(table, SCALES) + offset, read(entry(table, SHIFT) + offset, lanes)
        tiled = first + (last - first) // 8 * 8
        for pixel in range(first, tiled, 8):
            _sum_tile(table, scales, shift, pixel * step + offset, step, lanes)
        for pixel in range(tiled, last):
            _sum_pixel(table, scales, shift, pixel * step + offset, step, lanes)


@apart
def _gradient_tile(table: int, scales: int, sums: int, at: int, step: int, lanes: int) -> None:
    """Gradients of eight pixels of all values, their share of those of the scales, and last of that of the shift."""
    grad, terms, row = entry(table, SUM) + at, entry(table, TERMS), BYTES * blocks(entry(table, CHANNELS))
    g0, g1, g2, g3 = (
        read(grad, lanes),
        read(grad + step, lanes),
        read(grad + 2 * step, lanes),
        read(grad + 3 * step, lanes),
    )
    grad += 4 * step
    g4, g5, g6, g7 = (
        read(grad, lanes),
        read(grad + step, lanes),
        read(grad + 2 * step, lanes),
        read(grad + 3 * step, lanes),
    )
    for term in range(terms):
        value, to = _value(table, term) + at, _value(table, terms + term)
        one, other = fma(g0, read(value, lanes), load(sums)), multiply(g1, read(value + step, lanes))
        one, other = fma(g2, read(value + 2 * step, lanes), one), fma(g3, read(value + 3 * step, lanes), other)
        one, other = fma(g4, read(value + 4 * step, lanes), one), fma(g5, read(value + 5 * step, lanes), other)
        one, other = fma(g6, read(value + 6 * step, lanes), one), fma(g7, read(value + 7 * step, lanes), other)
        store(sums, add(one, other))
        if to:
            scale, to = read(scales + term * step, lanes), to + at
            write(to, multiply(scale, g0), lanes)
            write(to + step, multiply(scale, g1), lanes)
            write(to + 2 * step, multiply(scale, g2), lanes)
            write(to + 3 * step, multiply(scale, g3), lanes)
            write(to + 4 * step, multiply(scale, g4), lanes)
            write(to + 5 * step, multiply(scale, g5), lanes)
            write(to + 6 * step, multiply(scale, g6), lanes)
            write(to + 7 * step, multiply(scale, g7), lanes)
        sums += row
    store(sums, add(load(sums), add(add(add(g0, g1), add(g2, g3)), add(add(g4, g5), add(g6, g7)))))


@apart
def _gradient_pixel(table: int, scales: int, sums: int, at: int, step: int, lanes: int) -> None:
    terms, row = entry(table, TERMS), BYTES * blocks(entry(table, CHANNELS))
    grad = read(entry(table, SUM) + at, lanes)
    for term in range(terms):
        store(sums, fma(grad, read(_value(table, term) + at, lanes), load(sums)))
        to = _value(table, terms + term)
        if to:
            write(to + at, multiply(read(scales + term * step, lanes), grad), lanes)
        sums += row
    store(sums, add(load(sums), grad))


@apart
def _backward_chunk(table: int, sums: int, first: int, last: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    clear(sums, BYTES * blocks(channels) * (entry(table, TERMS) + 1))
    for block in range(blocks(channels)):
        lanes, offset = min(LANES, channels - LANES * block), BYTES * block
        scales = entry(table, SCALES) + offset
        tiled = first + (last - first) // 8 * 8
        for pixel in range(first, tiled, 8):
            _gradient_tile(table, scales, sums + offset, pixel * step + offset, step, lanes)
        for pixel in range(tiled, last):
            _gradient_pixel(table, scales, sums + offset, pixel * step + offset, step, lanes)


@inlined
def _first(table: int, chunk: int) -> int:
    return chunk * entry(table, PIXELS) // entry(table, CHUNKS)


@apart
def run_mixing_forward(table: int) -> None:
    """Writes SUM."""
    chunks = entry(table, CHUNKS)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        _forward_chunk(table, _first(table, chunk), _first(table, chunk + 1))
        chunk = claim(table + 8 * NEXT)


@apart
def run_mixing_backward(table: int) -> None:
    """Reads the gradient of SUM there; the sums over all pixels end in the first chunk of PARTIAL."""
    chunks, size = entry(table, CHUNKS), BYTES * blocks(entry(table, CHANNELS)) * (entry(table, TERMS) + 1)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        _backward_chunk(table, entry(table, PARTIAL) + chunk * size, _first(table, chunk), _first(table, chunk + 1))
        if claim(table + 8 * DONE) == chunks - 1:
            for other in range(1, chunks):
                for at in range(entry(table, PARTIAL), entry(table, PARTIAL) + size, BYTES):
                    store(at, add(load(at), load(at + other * size)))
        chunk = claim(table + 8 * NEXT)


@apart
def run_moments(table: int) -> None:
    """Writes to every chunk of PARTIAL, a block of channels after the other: means, and sums of squared deviations."""
    chunks, channels, step = entry(table, CHUNKS), entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        first, last = _first(table, chunk), _first(table, chunk + 1)
        for start in range(first, last, _BAND):
            pixels, at = min(_BAND, last - start), _value(table, 0) + start * step
            for block in range(blocks(channels)):
                sums = entry(table, PARTIAL) + 2 * BYTES * (chunk * blocks(channels) + block)
                lanes = min(LANES, channels - LANES * block)
                moments(at + BYTES * block, step, pixels, lanes, start - first, sums)
        chunk = claim(table + 8 * NEXT)
