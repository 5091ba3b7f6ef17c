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
from nasengine.kernels.vectors import BYTES, LANES, add, claim, filled, fma, load, multiply, number, store, subtract

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
"""Of every thread: of each term the mean, scale and shift of each block of channels; the mean and scale of each with
its weight, and the shifts of the sum; and the sums of a part of a chunk."""
IMAGE: Final = 10
"""Pixels of an image where some term has a weight for each image, else 0."""
HEADER: Final = 11

VALUE: Final = 0
WEIGHT: Final = 1
WEIGHT_STEP: Final = 2
"""Bytes from the weight for an image to that for the next; 0 where all have one."""
MEAN: Final = 3
VAR: Final = 4
GAMMA: Final = 5
BETA: Final = 6
EPS: Final = 7
GRAD_VALUE: Final = 8
GRAD_WEIGHT: Final = 9
GRAD_MEAN: Final = 10
GRAD_VAR: Final = 11
GRAD_GAMMA: Final = 12
GRAD_BETA: Final = 13
SCALE: Final = 14
"""For what the values are multiplied by, but for weights of images: their gradient is that of the sum times it."""
ONTO: Final = 15
"""Whether something is at the gradients of the values and of their norm already, to be added to."""
TERM: Final = 16

_BAND: Final = 128  # pixels that stay in the cache while they are read twice


@inlined
def _term(table: int, term: int) -> int:
    return table + 8 * (HEADER + TERM * term)


@inlined
def _row(table: int) -> int:
    """Bytes of a vector for each block of channels."""
    return BYTES * blocks(entry(table, CHANNELS))


@inlined
def _weighed(table: int, scratch: int) -> int:
    """Where the means and scales with weights are."""
    return scratch + 3 * _row(table) * entry(table, TERMS)


@inlined
def _part_sums(table: int, scratch: int) -> int:
    return _weighed(table, scratch) + _row(table) * (2 * entry(table, TERMS) + 1)


@apart
def _begin(table: int) -> int:
    """Prepares what the terms multiply by, in the memory of the thread that asks, and gives its address."""
    terms, channels, row = entry(table, TERMS), entry(table, CHANNELS), _row(table)
    scratch = entry(table, SCRATCH) + claim(table + 8 * SLOT) * row * (6 * terms + 2)
    clear(scratch, 3 * row * terms)
    for index in range(terms):
        term, to = _term(table, index), scratch + 3 * row * index
        weight = 1.0 if entry(term, WEIGHT_STEP) else types.float64(number(entry(term, WEIGHT)))
        for channel in range(channels):
            inverse = inverse_deviation(entry(term, VAR), channel, _eps(term))
            put(to, channel, optional(entry(term, MEAN), channel, 0.0))
            put(to + row, channel, weight * inverse * optional(entry(term, GAMMA), channel, 1.0))
            put(to + 2 * row, channel, weight * optional(entry(term, BETA), channel, 0.0))
    return scratch


@inlined
def _image_weight(term: int, image: int) -> Any:
    """The weight of a term for an image; 1 where all have one, which is in its scale already."""
    if entry(term, WEIGHT_STEP):
        return number(entry(term, WEIGHT) + entry(term, WEIGHT_STEP) * image)
    return types.float32(1.0)


@apart
def _weigh(table: int, scratch: int, image: int) -> int:
    """The means and scales of all terms for an image, then the shifts of the sum."""
    terms, row, to = entry(table, TERMS), _row(table), _weighed(table, scratch)
    clear(to + 2 * row * terms, row)
    for index in range(terms):
        weight = filled(_image_weight(_term(table, index), image))
        for at in range(0, row, BYTES):
            given, shift = scratch + 3 * row * index + at, to + 2 * row * terms + at
            store(to + 2 * row * index + 2 * at, load(given))
            store(to + 2 * row * index + 2 * at + BYTES, multiply(weight, load(given + row)))
            store(shift, fma(weight, load(given + 2 * row), load(shift)))
    return to


@inlined
def _end(table: int, start: int, last: int) -> int:
    """Where the part of a chunk ends that has one weight a term."""
    image = entry(table, IMAGE)
    return min(last, (start // image + 1) * image) if image else last


@inlined
def _image_of(table: int, pixel: int) -> int:
    return pixel // entry(table, IMAGE) if entry(table, IMAGE) else 0


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
        factors += 2 * _row(table)
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
        factors += 2 * _row(table)
    write(entry(table, SUM) + at, total, lanes)


@apart
def _forward_part(table: int, factors: int, first: int, last: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    for block in range(blocks(channels)):
        lanes, offset = min(LANES, channels - LANES * block), BYTES * block
        shift, own = load(factors + 2 * _row(table) * entry(table, TERMS) + offset), factors + 2 * offset
        tiled = first + (last - first) // 8 * 8
        for pixel in range(first, tiled, 8):
            _sum_tile(table, own, shift, pixel * step + offset, step, lanes)
        for pixel in range(tiled, last):
            _sum_pixel(table, own, shift, pixel * step + offset, lanes)


@apart
def _forward_chunk(table: int, scratch: int, first: int, last: int) -> None:
    while first < last:
        end = _end(table, first, last)
        _forward_part(table, _weigh(table, scratch, _image_of(table, first)), first, end)
        first = end


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
def _backward_part(table: int, factors: int, sums: int, first: int, last: int) -> None:
    channels, step = entry(table, CHANNELS), 4 * entry(table, CHANNELS)
    clear(sums, _row(table) * (entry(table, TERMS) + 1))
    for block in range(blocks(channels)):
        lanes, offset = min(LANES, channels - LANES * block), BYTES * block
        own, tiled = factors + 2 * offset, first + (last - first) // 8 * 8
        for pixel in range(first, tiled, 8):
            _gradient_tile(table, own, sums + offset, pixel * step + offset, step, lanes)
        for pixel in range(tiled, last):
            _gradient_pixel(table, own, sums + offset, pixel * step + offset, lanes)


@apart
def _backward_chunk(table: int, scratch: int, sums: int, first: int, last: int) -> None:
    """Of each term the sums of g * (value - mean) and of g, times its weights for images."""
    terms, row, part = entry(table, TERMS), _row(table), _part_sums(table, scratch)
    clear(sums, 2 * row * terms)
    while first < last:
        end, image = _end(table, first, last), _image_of(table, first)
        _backward_part(table, _weigh(table, scratch, image), part, first, end)
        for index in range(terms):
            weight, to = filled(_image_weight(_term(table, index), image)), sums + 2 * row * index
            for at in range(0, row, BYTES):
                store(to + at, fma(weight, load(part + row * index + at), load(to + at)))
                store(to + row + at, fma(weight, load(part + row * terms + at), load(to + row + at)))
        first = end


@apart
def _finish_term(term: int, channels: int, sums: int, totals: int) -> None:
    """The gradients of all that the scale and shift of a term are made of."""
    weight, of_weight = 1.0 if entry(term, WEIGHT_STEP) else types.float64(number(entry(term, WEIGHT))), 0.0
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
    terms, row = entry(table, TERMS), _row(table)
    size = 2 * row * terms
    chunk = claim(table + 8 * NEXT)
    while chunk < chunks:
        _backward_chunk(table, scratch, partial + chunk * size, _first(table, chunk), _first(table, chunk + 1))
        if claim(table + 8 * DONE) == chunks - 1:
            for other in range(1, chunks):
                for at in range(partial, partial + size, BYTES):
                    store(at, add(load(at), load(at + other * size)))
            for index in range(terms):
                _finish_term(
                    _term(table, index),
                    entry(table, CHANNELS),
                    partial + 2 * index * row,
                    partial + (2 * index + 1) * row,
                )
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
    chunks, pixels, size = entry(table, CHUNKS), entry(table, PIXELS), 2 * _row(table)
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
