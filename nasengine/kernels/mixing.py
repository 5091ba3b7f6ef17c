"""Compiled loops of `nasengine.mixing`, for channels-last float32 on CPUs. Needs numba; imported on first use.

The kernels take the address of a table of int64, see the names of its entries: sizes, and addresses in bytes, 0 for
what is not there or not needed. Values are rows of pixels with channels innermost; a tile is eight pixels of a block of
channels, whose sum stays in eight registers while the terms pass by. Threads take chunks of pixels from a counter; sums
over pixels are kept a chunk and added in the order of the chunks by whoever is last, so that the bits do not depend on
the threads.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any, Final

from numba import types

from nasengine.kernels.norms import inverse_deviation, optional, put, put_onto
from nasengine.kernels.table import blocks, entry
from nasengine.kernels.tiles import apart, clear, inlined, moments, read, write
from nasengine.kernels.vectors import BYTES, LANES, add, claim, fma, load, multiply, number, store, subtract

NEXT: Final = 0
"""Counters that threads share: of chunks begun, of threads, of chunks that are done."""
SLOT: Final = 1
DONE: Final = 2
CHUNKS: Final = 3
PIXELS: Final = 4
CHANNELS: Final = 5
TERMS: Final = 6
SUM: Final = 7
PARTIAL: Final = 8
SCRATCH: Final = 9
"""Of every thread: the mean and the scale of each block of channels of each term, then the shifts of the sum."""
HEADER: Final = 10

VALUE: Final = 0
WEIGHT: Final = 1
MEAN: Final = 2
VAR: Final = 3
GAMMA: Final = 4
BETA: Final = 5
EPS: Final = 6
GRAD_VALUE: Final = 7
GRAD_WEIGHT: Final = 8
GRAD_MEAN: Final = 9
GRAD_VAR: Final = 10
GRAD_GAMMA: Final = 11
GRAD_BETA: Final = 12
SCALE: Final = 13
"""For what the values are multiplied by: their gradient is that of the sum times it."""
ONTO: Final = 14
"""Whether something is at the gradients of the values and of their norm already, to be added to."""
TERM: Final = 15

_BAND: Final = 128  # pixels that stay in the cache while they are read twice


@inlined
def _term(table: int, term: int) -> int:
    return table + 8 * (HEADER + TERM * term)


@inlined
def _row(table: int) -> int:
    """Bytes from the factors of a term to those of the next."""
    return 2 * BYTES * blocks(entry(table, CHANNELS))


@apart
def _begin(table: int) -> int:
    """Prepares the factors of the thread that asks, and gives their address."""
    terms, channels, row = entry(table, TERMS), entry(table, CHANNELS), _row(table)
    size = row * terms + BYTES * blocks(channels)
    scratch = entry(table, SCRATCH) + claim(table + 8 * SLOT) * size
    clear(scratch, size)
    for channel in range(channels):
        to, shift = scratch + channel // LANES * 2 * BYTES + channel % LANES * 4, 0.0
        for index in range(terms):
            term = _term(table, index)
            weight, inverse = number(entry(term, WEIGHT)), inverse_deviation(entry(term, VAR), channel, _eps(term))
            put(to, 0, optional(entry(term, MEAN), channel, 0.0))
            put(to + BYTES, 0, weight * inverse * optional(entry(term, GAMMA), channel, 1.0))
            shift += weight * optional(entry(term, BETA), channel, 0.0)
            to += row
        put(scratch + row * terms, channel, shift)
    return scratch


@inlined
def _eps(term: int) -> float:
    return types.float64(number(term + 8 * EPS))


@apart
def _sum_tile(table: int, factors: int, shift: Any, at: int, step: int, lanes: int) -> None:
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = shift
    for term in range(entry(table, TERMS)):
        value = entry(_term(table, term), VALUE) + at
        mean, scale = load(factors), load(factors + BYTES)
        a0 = fma(scale, subtract(read(value, lanes), mean), a0)
        a1 = fma(scale, subtract(read(value + step, lanes), mean), a1)
        a2 = fma(scale, subtract(read(value + 2 * step, lanes), mean), a2)
        a3 = fma(scale, subtract(read(value + 3 * step, lanes), mean), a3)
        a4 = fma(scale, subtract(read(value + 4 * step, lanes), mean), a4)
        a5 = fma(scale, subtract(read(value + 5 * step, lanes), mean), a5)
        a6 = fma(scale, subtract(read(value + 6 * step, lanes), mean), a6)
        a7 = fma(scale, subtract(read(value + 7 * step, lanes), mean), a7)
        factors += _row(table)
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
def _sum_pixel(table: int, factors: int, shift: Any, at: int, lanes: int) -> None:
    total = shift
    for term in range(entry(table, TERMS)):
        away = subtract(read(entry(_term(table, term), VALUE) + at, lanes), load(factors))
        total = fma(load(factors + BYTES), away, total)
        factors += _row(table)
    write(entry(table, SUM) + at, total, lanes)


@apart
def _forward_chunk(table: int, scratch: int, first: int, last: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    for block in range(blocks(channels)):
        lanes, offset, factors = min(LANES, channels - LANES * block), BYTES * block, scratch + 2 * BYTES * block
        shift = load(scratch + _row(table) * entry(table, TERMS) + offset)
        tiled = first + (last - first) // 8 * 8
        for pixel in range(first, tiled, 8):
            _sum_tile(table, factors, shift, pixel * step + offset, step, lanes)
        for pixel in range(tiled, last):
            _sum_pixel(table, factors, shift, pixel * step + offset, lanes)


@inlined
def _put_product(to: int, scale: Any, grad: Any, onto: bool, lanes: int) -> None:
    write(to, fma(scale, grad, read(to, lanes)) if onto else multiply(scale, grad), lanes)


@apart
def _gradient_tile(table: int, factors: int, sums: int, at: int, step: int, lanes: int) -> None:
    """Gradients of eight pixels of all values, their share of the sums of g * (value - mean), and last of that of g."""
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
        value, to = entry(_term(table, term), VALUE) + at, entry(_term(table, term), GRAD_VALUE)
        mean = load(factors)
        one = fma(g0, subtract(read(value, lanes), mean), load(sums))
        other = multiply(g1, subtract(read(value + step, lanes), mean))
        one = fma(g2, subtract(read(value + 2 * step, lanes), mean), one)
        other = fma(g3, subtract(read(value + 3 * step, lanes), mean), other)
        one = fma(g4, subtract(read(value + 4 * step, lanes), mean), one)
        other = fma(g5, subtract(read(value + 5 * step, lanes), mean), other)
        one = fma(g6, subtract(read(value + 6 * step, lanes), mean), one)
        other = fma(g7, subtract(read(value + 7 * step, lanes), mean), other)
        store(sums, add(one, other))
        if to:
            scale, to, onto = load(factors + BYTES), to + at, entry(_term(table, term), ONTO) != 0
            _put_product(to, scale, g0, onto, lanes)
            _put_product(to + step, scale, g1, onto, lanes)
            _put_product(to + 2 * step, scale, g2, onto, lanes)
            _put_product(to + 3 * step, scale, g3, onto, lanes)
            _put_product(to + 4 * step, scale, g4, onto, lanes)
            _put_product(to + 5 * step, scale, g5, onto, lanes)
            _put_product(to + 6 * step, scale, g6, onto, lanes)
            _put_product(to + 7 * step, scale, g7, onto, lanes)
        sums += row
        factors += 2 * row
    store(sums, add(load(sums), add(add(add(g0, g1), add(g2, g3)), add(add(g4, g5), add(g6, g7)))))


@apart
def _gradient_pixel(table: int, factors: int, sums: int, at: int, lanes: int) -> None:
    terms, row = entry(table, TERMS), BYTES * blocks(entry(table, CHANNELS))
    grad = read(entry(table, SUM) + at, lanes)
    for term in range(terms):
        away = subtract(read(entry(_term(table, term), VALUE) + at, lanes), load(factors))
        store(sums, fma(grad, away, load(sums)))
        to = entry(_term(table, term), GRAD_VALUE)
        if to:
            onto = entry(_term(table, term), ONTO) != 0
            _put_product(to + at, load(factors + BYTES), grad, onto, lanes)
        sums += row
        factors += 2 * row
    store(sums, add(load(sums), grad))


@apart
def _backward_chunk(table: int, scratch: int, sums: int, first: int, last: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    clear(sums, BYTES * blocks(channels) * (entry(table, TERMS) + 1))
    for block in range(blocks(channels)):
        lanes, offset, factors = min(LANES, channels - LANES * block), BYTES * block, scratch + 2 * BYTES * block
        tiled = first + (last - first) // 8 * 8
        for pixel in range(first, tiled, 8):
            _gradient_tile(table, factors, sums + offset, pixel * step + offset, step, lanes)
        for pixel in range(tiled, last):
            _gradient_pixel(table, factors, sums + offset, pixel * step + offset, lanes)


@apart
def _finish_term(term: int, channels: int, sums: int, totals: int) -> None:
    """The gradients of all that the scale and shift of a term are made of."""
    weight, of_weight = types.float64(number(entry(term, WEIGHT))), 0.0
    for channel in range(channels):
        by_x, total = optional(sums, channel, 0.0), optional(totals, channel, 0.0)
        inverse = inverse_deviation(entry(term, VAR), channel, _eps(term))
        gamma, beta = optional(entry(term, GAMMA), channel, 1.0), optional(entry(term, BETA), channel, 0.0)
        scale = weight * gamma * inverse
        onto = entry(term, ONTO) != 0
        put_onto(entry(term, GRAD_MEAN), channel, -scale * total, onto)
        put_onto(entry(term, GRAD_VAR), channel, -0.5 * scale * inverse * inverse * by_x, onto)
        put_onto(entry(term, GRAD_GAMMA), channel, weight * inverse * by_x, onto)
        put_onto(entry(term, GRAD_BETA), channel, weight * total, onto)
        put(entry(term, SCALE), channel, scale)
        of_weight += gamma * inverse * by_x + beta * total
    put(entry(term, GRAD_WEIGHT), 0, of_weight)


@inlined
def _first(table: int, chunk: int) -> int:
    return chunk * entry(table, PIXELS) // entry(table, CHUNKS)


@apart
def run_mixing_forward(table: int) -> None:
    """Writes SUM."""
    chunks, scratch = entry(table, CHUNKS), _begin(table)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        _forward_chunk(table, scratch, _first(table, chunk), _first(table, chunk + 1))
        chunk = claim(table + 8 * NEXT)


@apart
def run_mixing_backward(table: int) -> None:
    """Reads the gradient of SUM there, and writes those of the terms."""
    chunks, scratch, partial = entry(table, CHUNKS), _begin(table), entry(table, PARTIAL)
    terms, row = entry(table, TERMS), BYTES * blocks(entry(table, CHANNELS))
    size = row * (terms + 1)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        _backward_chunk(table, scratch, partial + chunk * size, _first(table, chunk), _first(table, chunk + 1))
        if claim(table + 8 * DONE) == chunks - 1:
            for other in range(1, chunks):
                for at in range(partial, partial + size, BYTES):
                    store(at, add(load(at), load(at + other * size)))
            for index in range(terms):
                _finish_term(_term(table, index), entry(table, CHANNELS), partial + index * row, partial + terms * row)
        chunk = claim(table + 8 * NEXT)


@apart
def _chunk_moments(table: int, chunk: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    first, last = _first(table, chunk), _first(table, chunk + 1)
    for start in range(first, last, _BAND):
        pixels, at = min(_BAND, last - start), entry(_term(table, 0), VALUE) + start * step
        for block in range(blocks(channels)):
            sums = entry(table, PARTIAL) + 2 * BYTES * (chunk * blocks(channels) + block)
            lanes = min(LANES, channels - LANES * block)
            moments(at + BYTES * block, step, pixels, lanes, start - first, sums)


@apart
def _finish_moments(table: int) -> None:
    """Mean and biased variance over all chunks, from those of each."""
    chunks, pixels, size = entry(table, CHUNKS), entry(table, PIXELS), _row(table)
    for channel in range(entry(table, CHANNELS)):
        first = entry(table, PARTIAL) + channel // LANES * 2 * BYTES + channel % LANES * 4
        mean, squares = 0.0, 0.0
        for chunk in range(chunks):
            count = _first(table, chunk + 1) - _first(table, chunk)
            mean += count * types.float64(number(first + chunk * size)) / pixels
        for chunk in range(chunks):
            away = types.float64(number(first + chunk * size)) - mean
            count = _first(table, chunk + 1) - _first(table, chunk)
            squares += types.float64(number(first + chunk * size + BYTES)) + count * away * away
        put(entry(_term(table, 0), MEAN), channel, mean)
        put(entry(_term(table, 0), VAR), channel, squares / pixels)


@apart
def run_moments(table: int) -> None:
    """Writes MEAN and VAR of the one term."""
    chunks = entry(table, CHUNKS)
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        _chunk_moments(table, chunk)
        if claim(table + 8 * DONE) == chunks - 1:
            _finish_moments(table)
        chunk = claim(table + 8 * NEXT)
