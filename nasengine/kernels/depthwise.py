"""Depthwise convolutions of batches of small images, forward and backward, for channels-last float32. Needs numba.

A tile is one pixel of eight images, a vector of channels each, so that taps that reach out of the image are left out
and not multiplied by zeros: of a 7x7 kernel on 2x2 pixels those are 45 of 49. Eight images of a block of channels are
copied beside each other first, where no two of their pixels share a place of the cache.

Threads take tasks, a block of channels and a part of the images, from a counter. Gradients of the weight are kept by
task and added in the order of the parts by whoever is last, so that the bits do not depend on the threads.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from typing import Any, Final

from nasengine.kernels.table import blocks, entry, halved
from nasengine.kernels.tiles import apart, clear, inlined, read, write
from nasengine.kernels.unrolled import zero_tile
from nasengine.kernels.vectors import BYTES, LANES, add, claim, fma, load, number, put_number, store, zeros

NEXT: Final = 0
"""Counters that threads share: of tasks begun, of threads, of tasks that are done."""
SLOT: Final = 1
DONE: Final = 2
PARTS: Final = 3
IMAGES: Final = 4
CHANNELS: Final = 5
HEIGHT: Final = 6
WIDTH: Final = 7
KERNEL: Final = 8
STRIDE: Final = 9
WEIGHT: Final = 10
X: Final = 11
Y: Final = 12
"""The output forward; backward its gradient."""
GRAD_X: Final = 13
GRAD_WEIGHT: Final = 14
SCRATCH: Final = 15
"""Memory of the threads: taps, eight images of the input, eight of the output."""
SCRATCH_SIZE: Final = 16
AT_X: Final = 17
AT_Y: Final = 18
SUMS: Final = 19
"""Gradients of the taps: (parts, blocks of channels, taps) vectors."""
HEADER: Final = 20

TILE: Final = 8
"""Images at a time."""
_PIXEL: Final = TILE * BYTES


@apart
def _gather(source: int, image_step: int, step: int, pixels: int, count: int, lanes: int, to: int) -> None:
    """Copies some images of a block of channels to (pixels, TILE, LANES); those that are missing are zeros."""
    if count < TILE:
        clear(to, pixels * _PIXEL)
    for image in range(count):
        at, out = source + image * image_step, to + image * BYTES
        for _ in range(pixels):
            store(out, read(at, lanes))
            at += step
            out += _PIXEL


@inlined
def _multiply(sums: Any, at: int, weight: Any) -> Any:
    """Eight sums with the products of eight vectors and a weight more."""
    a0, a1 = fma(load(at), weight, sums[0]), fma(load(at + BYTES), weight, sums[1])
    a2, a3 = fma(load(at + 2 * BYTES), weight, sums[2]), fma(load(at + 3 * BYTES), weight, sums[3])
    a4, a5 = fma(load(at + 4 * BYTES), weight, sums[4]), fma(load(at + 5 * BYTES), weight, sums[5])
    a6, a7 = fma(load(at + 6 * BYTES), weight, sums[6]), fma(load(at + 7 * BYTES), weight, sums[7])
    return a0, a1, a2, a3, a4, a5, a6, a7


@inlined
def _scatter(sums: Any, to: int, image_step: int, count: int, lanes: int) -> None:
    """Writes a pixel of some images."""
    write(to, sums[0], lanes)
    if count > 1:
        write(to + image_step, sums[1], lanes)
    if count > 2:
        write(to + 2 * image_step, sums[2], lanes)
    if count > 3:
        write(to + 3 * image_step, sums[3], lanes)
    if count > 4:
        write(to + 4 * image_step, sums[4], lanes)
    if count > 5:
        write(to + 5 * image_step, sums[5], lanes)
    if count > 6:
        write(to + 6 * image_step, sums[6], lanes)
    if count > 7:
        write(to + 7 * image_step, sums[7], lanes)


@apart
def _convolve(table: int, x: int, weights: int, out: int, image_step: int, count: int, lanes: int) -> None:
    """The output of some images: out(y, x) = sum of taps over u(y * stride + ky - k // 2, ...)."""
    height, width, kernel, stride = (
        entry(table, HEIGHT),
        entry(table, WIDTH),
        entry(table, KERNEL),
        entry(table, STRIDE),
    )
    around, step = kernel // 2, 4 * entry(table, CHANNELS)
    for row in range(halved(height, stride)):
        top = row * stride - around
        first, last = max(0, -top), min(kernel, height - top)
        for column in range(halved(width, stride)):
            left = column * stride - around
            start, count_x = max(0, -left), min(kernel, width - left) - max(0, -left)
            sums = zero_tile(8)
            for ky in range(first, last):
                at, tap = x + ((top + ky) * width + left + start) * _PIXEL, weights + (ky * kernel + start) * BYTES
                for _ in range(count_x):
                    sums = _multiply(sums, at, load(tap))
                    at += _PIXEL
                    tap += BYTES
            _scatter(sums, out, image_step, count, lanes)
            out += step


@apart
def _spread(table: int, g: int, weights: int, out: int, image_step: int, count: int, lanes: int) -> None:
    """The gradient of the input of some images: each pixel sums the taps by which it was read."""
    height, width, kernel, stride = (
        entry(table, HEIGHT),
        entry(table, WIDTH),
        entry(table, KERNEL),
        entry(table, STRIDE),
    )
    rows, columns, around, step = (
        halved(height, stride),
        halved(width, stride),
        kernel // 2,
        4 * entry(table, CHANNELS),
    )
    for row in range(height):
        first = max((row + around) % stride, row + around - (rows - 1) * stride)
        last = min(kernel, row + around + 1)
        for column in range(width):
            start = max((column + around) % stride, column + around - (columns - 1) * stride)
            end = min(kernel, column + around + 1)
            sums = zero_tile(8)
            for ky in range(first, last, stride):
                at = g + ((row + around - ky) // stride * columns + (column + around - start) // stride) * _PIXEL
                tap = weights + (ky * kernel + start) * BYTES
                for _ in range(start, end, stride):
                    sums = _multiply(sums, at, load(tap))
                    at -= _PIXEL
                    tap += stride * BYTES
            _scatter(sums, out, image_step, count, lanes)
            out += step


@inlined
def _correlate(sums: Any, x: int, g: int) -> Any:
    """Eight sums with the products of two tiles more."""
    a0, a1 = fma(load(x), load(g), sums[0]), fma(load(x + BYTES), load(g + BYTES), sums[1])
    a2, a3 = (
        fma(load(x + 2 * BYTES), load(g + 2 * BYTES), sums[2]),
        fma(load(x + 3 * BYTES), load(g + 3 * BYTES), sums[3]),
    )
    a4, a5 = (
        fma(load(x + 4 * BYTES), load(g + 4 * BYTES), sums[4]),
        fma(load(x + 5 * BYTES), load(g + 5 * BYTES), sums[5]),
    )
    a6, a7 = (
        fma(load(x + 6 * BYTES), load(g + 6 * BYTES), sums[6]),
        fma(load(x + 7 * BYTES), load(g + 7 * BYTES), sums[7]),
    )
    return a0, a1, a2, a3, a4, a5, a6, a7


@apart
def _weigh(table: int, x: int, g: int, total: int) -> None:
    """Adds to the gradients of all taps what eight images have of them."""
    height, width, kernel, stride = (
        entry(table, HEIGHT),
        entry(table, WIDTH),
        entry(table, KERNEL),
        entry(table, STRIDE),
    )
    columns, around = halved(width, stride), kernel // 2
    for ky in range(kernel):
        # a pixel y of the output reads y * stride + ky - around
        first, last = halved(max(0, around - ky), stride), (height - 1 + around - ky) // stride + 1
        last = min(last, halved(height, stride))
        for kx in range(kernel):
            start, end = halved(max(0, around - kx), stride), min((width - 1 + around - kx) // stride + 1, columns)
            sums = zero_tile(8)
            for row in range(first, last):
                at = x + ((row * stride + ky - around) * width + start * stride + kx - around) * _PIXEL
                by = g + (row * columns + start) * _PIXEL
                for _ in range(start, end):
                    sums = _correlate(sums, at, by)
                    at += stride * _PIXEL
                    by += _PIXEL
            half, other = add(add(sums[0], sums[1]), add(sums[2], sums[3])), add(add(sums[4], sums[5]), sums[6])
            to = total + (ky * kernel + kx) * BYTES
            store(to, add(load(to), add(half, add(other, sums[7]))))


@apart
def _pack(table: int, block: int, to: int) -> None:
    """Copies the taps of a block of channels to (taps, LANES)."""
    taps = entry(table, KERNEL) * entry(table, KERNEL)
    clear(to, taps * BYTES)
    for lane in range(min(LANES, entry(table, CHANNELS) - block * LANES)):
        source = entry(table, WEIGHT) + (block * LANES + lane) * taps * 4
        for tap in range(taps):
            put_number(to + tap * BYTES + 4 * lane, number(source + 4 * tap))


@inlined
def _groups(table: int) -> int:
    return (entry(table, IMAGES) + TILE - 1) // TILE


@apart
def _run_task(table: int, task: int, scratch: int) -> None:
    """A block of channels of some of the images."""
    channels, height, width, stride = (
        entry(table, CHANNELS),
        entry(table, HEIGHT),
        entry(table, WIDTH),
        entry(table, STRIDE),
    )
    block, part, parts = task % blocks(channels), task // blocks(channels), entry(table, PARTS)
    lanes, step, offset = min(LANES, channels - block * LANES), 4 * channels, block * BYTES
    pixels, outputs = height * width, halved(height, stride) * halved(width, stride)
    x, y, taps = scratch + entry(table, AT_X), scratch + entry(table, AT_Y), entry(table, KERNEL) * entry(table, KERNEL)
    sums = entry(table, SUMS) + task * taps * BYTES
    _pack(table, block, scratch)
    if entry(table, GRAD_WEIGHT):
        clear(sums, taps * BYTES)
    for group in range(part * _groups(table) // parts, (part + 1) * _groups(table) // parts):
        first = group * TILE
        count = min(TILE, entry(table, IMAGES) - first)
        source, out = (
            entry(table, X) + first * pixels * step + offset,
            entry(table, Y) + first * outputs * step + offset,
        )
        if entry(table, GRAD_WEIGHT) or not entry(table, GRAD_X):
            _gather(source, pixels * step, step, pixels, count, lanes, x)
        if not entry(table, GRAD_WEIGHT) and not entry(table, GRAD_X):
            _convolve(table, x, scratch, out, outputs * step, count, lanes)
            continue
        _gather(out, outputs * step, step, outputs, count, lanes, y)
        if entry(table, GRAD_X):
            to = entry(table, GRAD_X) + first * pixels * step + offset
            _spread(table, y, scratch, to, pixels * step, count, lanes)
        if entry(table, GRAD_WEIGHT):
            _weigh(table, x, y, sums)


@apart
def _finish(table: int) -> None:
    """Adds the gradients of the weight of all parts."""
    channels, taps = entry(table, CHANNELS), entry(table, KERNEL) * entry(table, KERNEL)
    size = blocks(channels) * taps * BYTES
    for at in range(entry(table, SUMS), entry(table, SUMS) + size, BYTES):
        total = zeros()
        for part in range(entry(table, PARTS)):
            total = add(total, load(at + part * size))
        store(at, total)
    for channel in range(channels):
        source = entry(table, SUMS) + channel // LANES * taps * BYTES + channel % LANES * 4
        for tap in range(taps):
            put_number(entry(table, GRAD_WEIGHT) + (channel * taps + tap) * 4, number(source + tap * BYTES))


@apart
def run_depthwise(table: int) -> None:
    """Forward where no gradient has an address, else those gradients."""
    tasks = blocks(entry(table, CHANNELS)) * entry(table, PARTS)
    scratch = entry(table, SCRATCH) + claim(table + 8 * SLOT) * entry(table, SCRATCH_SIZE)
    task = claim(table + 8 * NEXT)
    while task < tasks:
        _run_task(table, task, scratch)
        if claim(table + 8 * DONE) == tasks - 1 and entry(table, GRAD_WEIGHT):
            _finish(table)
        task = claim(table + 8 * NEXT)
