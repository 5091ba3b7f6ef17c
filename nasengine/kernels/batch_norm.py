"""Batch norm with the activation behind it, forward and backward, for channels-last float32. Needs numba.

A thread takes a block of channels through all pixels: what the second pass over them reads is in the cache, and no sum
is divided among threads. Nothing but the input, the means and the deviations is kept for backward.

In training all pixels are one batch. Where a subnet is judged they are those of several batches, each normalised by its
own moments, of which the running moments become the means; or of none, and are normalised by the running moments.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

import math
from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from nasengine.kernels.table import blocks, entry
from nasengine.kernels.tiles import apart, inlined, moments, read, write
from nasengine.kernels.vectors import (
    BYTES,
    LANES,
    Signature,
    add,
    claim,
    filled,
    fma,
    gate,
    intrinsic,
    multiply,
    number,
    put_number,
    rectified,
    subtract,
    vector,
    zeros,
)

NEXT: Final = 0
SLOT: Final = 1
"""Counters that threads share: of blocks begun, of threads."""
PIXELS: Final = 2
CHANNELS: Final = 3
ACTIVATION: Final = 4
"""NONE, RELU or HARDSWISH."""
X: Final = 5
Y: Final = 6
"""The output forward; backward its gradient."""
WEIGHT: Final = 7
BIAS: Final = 8
MEAN: Final = 9
DEVIATION: Final = 10
"""One over the standard deviation."""
RUNNING_MEAN: Final = 11
RUNNING_VAR: Final = 12
FACTORS: Final = 13
"""Two floats in one entry: the share of a batch in the running moments, 0 for means, and what is added to variances."""
GRAD_X: Final = 14
"""0 in a forward pass."""
GRAD_WEIGHT: Final = 15
GRAD_BIAS: Final = 16
SCRATCH: Final = 17
"""Two vectors a thread."""
BATCHES: Final = 18
BATCH: Final = 19
"""Pixels of each batch."""
BEFORE: Final = 20
"""Batches that are in the means already."""

NONE: Final = 0
RELU: Final = 1
HARDSWISH: Final = 2

_BAND: Final = 256
"""Pixels whose sums are added up before they join those of others, which keeps them exact."""


def _constant(value: float) -> Any:
    return ir.Constant(ir.VectorType(ir.FloatType(), LANES), [value] * LANES)


def _chosen(builder: Any, sign: str, a: Any, b: Any, one: Any, other: Any) -> Any:
    return builder.select(builder.fcmp_ordered(sign, a, b), one, other)


@intrinsic
def hardswish(typing: Any, z: Any) -> Signature:
    """z * min(max(z + 3, 0), 6) / 6."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z, none, six = arguments[0], _constant(0.0), _constant(6.0)
        within = builder.fadd(z, _constant(3.0))
        within = _chosen(builder, "<", within, none, none, within)
        within = _chosen(builder, ">", within, six, six, within)
        return builder.fmul(builder.fmul(z, within), _constant(1 / 6))

    return vector(vector), generate


@intrinsic
def hardswish_gradient(typing: Any, g: Any, z: Any) -> Signature:
    """g times its slope: 0 up to -3, 1 from 3 on, z / 3 + 1 / 2 in between."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        g, z = arguments
        slope = builder.fadd(builder.fmul(z, _constant(1 / 3)), _constant(0.5))
        found = _chosen(builder, ">=", z, _constant(3.0), g, builder.fmul(g, slope))
        return _chosen(builder, "<=", z, _constant(-3.0), _constant(0.0), found)

    return vector(vector, vector), generate


@inlined
def _activated(z: Any, activation: int) -> Any:
    if activation == RELU:
        return rectified(z)
    if activation == HARDSWISH:
        return hardswish(z)
    return z


@inlined
def _slope(g: Any, z: Any, activation: int) -> Any:
    if activation == RELU:
        return gate(g, z)
    if activation == HARDSWISH:
        return hardswish_gradient(g, z)
    return g


@apart
def _measure(table: int, block: int, lanes: int, batch: int, sums: int) -> None:
    """Means and deviations of a block of channels in a batch, and what they make of the running moments."""
    pixels, step, offset = entry(table, BATCH), 4 * entry(table, CHANNELS), block * BYTES
    start = batch * pixels
    for first in range(0, pixels, _BAND):
        at = entry(table, X) + offset + (start + first) * step
        moments(at, step, min(_BAND, pixels - first), lanes, first, sums)
    share, epsilon = number(table + 8 * FACTORS), number(table + 8 * FACTORS + 4)
    if share == 0.0:
        share = types.float32(1.0 / (entry(table, BEFORE) + batch + 1))
    for lane in range(lanes):
        mean, var = number(sums + 4 * lane), number(sums + BYTES + 4 * lane) / types.float32(pixels)
        to = offset + 4 * lane
        put_number(entry(table, MEAN) + to, mean)
        put_number(entry(table, DEVIATION) + to, types.float32(1.0 / math.sqrt(types.float64(var) + epsilon)))
        if entry(table, RUNNING_MEAN):
            running, running_var = entry(table, RUNNING_MEAN) + to, entry(table, RUNNING_VAR) + to
            unbiased = var * types.float32(pixels / (pixels - 1.0))
            put_number(running, number(running) + share * (mean - number(running)))
            put_number(running_var, number(running_var) + share * (unbiased - number(running_var)))


@apart
def _take_running(table: int, block: int, lanes: int) -> None:
    offset, epsilon = block * BYTES, number(table + 8 * FACTORS + 4)
    for lane in range(lanes):
        to = offset + 4 * lane
        var = types.float64(number(entry(table, RUNNING_VAR) + to))
        put_number(entry(table, MEAN) + to, number(entry(table, RUNNING_MEAN) + to))
        put_number(entry(table, DEVIATION) + to, types.float32(1.0 / math.sqrt(var + epsilon)))


@inlined
def _normalise(table: int, block: int, lanes: int, activation: int, first: int, count: int) -> None:
    step, offset = 4 * entry(table, CHANNELS), block * BYTES
    mean, bias = read(entry(table, MEAN) + offset, lanes), read(entry(table, BIAS) + offset, lanes)
    scale = multiply(read(entry(table, WEIGHT) + offset, lanes), read(entry(table, DEVIATION) + offset, lanes))
    at, to = entry(table, X) + offset + first * step, entry(table, Y) + offset + first * step
    for _ in range(count):
        z = fma(subtract(read(at, lanes), mean), scale, bias)
        write(to, _activated(z, activation), lanes)
        at += step
        to += step


@inlined
def _differentiate(table: int, block: int, lanes: int, activation: int) -> None:
    """With n the normalised input and g the gradient behind the activation: of weight and bias the sums of g * n and
    g, of x scale * (g - mean(g) - n * mean(g * n))."""
    pixels, step, offset = entry(table, PIXELS), 4 * entry(table, CHANNELS), block * BYTES
    mean, deviation = read(entry(table, MEAN) + offset, lanes), read(entry(table, DEVIATION) + offset, lanes)
    weight, bias = read(entry(table, WEIGHT) + offset, lanes), read(entry(table, BIAS) + offset, lanes)
    at, by = entry(table, X) + offset, entry(table, Y) + offset
    products, total = zeros(), zeros()
    for first in range(0, pixels, _BAND):
        p0, p1, t0, t1 = zeros(), zeros(), zeros(), zeros()
        count = min(_BAND, pixels - first)
        for _ in range(count // 2):
            n0 = multiply(subtract(read(at, lanes), mean), deviation)
            n1 = multiply(subtract(read(at + step, lanes), mean), deviation)
            g0 = _slope(read(by, lanes), fma(n0, weight, bias), activation)
            g1 = _slope(read(by + step, lanes), fma(n1, weight, bias), activation)
            p0, p1, t0, t1 = fma(g0, n0, p0), fma(g1, n1, p1), add(t0, g0), add(t1, g1)
            at += 2 * step
            by += 2 * step
        if count % 2:
            n0 = multiply(subtract(read(at, lanes), mean), deviation)
            g0 = _slope(read(by, lanes), fma(n0, weight, bias), activation)
            p0, t0 = fma(g0, n0, p0), add(t0, g0)
            at += step
            by += step
        products, total = add(products, add(p0, p1)), add(total, add(t0, t1))
    write(entry(table, GRAD_WEIGHT) + offset, products, lanes)
    write(entry(table, GRAD_BIAS) + offset, total, lanes)
    share = filled(types.float32(-1.0 / pixels))
    scale, products, total = multiply(weight, deviation), multiply(products, share), multiply(total, share)
    at, by, to = entry(table, X) + offset, entry(table, Y) + offset, entry(table, GRAD_X) + offset
    for _ in range(pixels):
        n0 = multiply(subtract(read(at, lanes), mean), deviation)
        g0 = _slope(read(by, lanes), fma(n0, weight, bias), activation)
        write(to, multiply(scale, add(g0, fma(n0, products, total))), lanes)
        at += step
        by += step
        to += step


@apart
def _write(table: int, block: int, lanes: int, first: int, count: int) -> None:
    """The output of some pixels; the activation is a literal in each loop, so that no pixel asks for it."""
    if entry(table, ACTIVATION) == NONE:
        _normalise(table, block, lanes, NONE, first, count)
    elif entry(table, ACTIVATION) == RELU:
        _normalise(table, block, lanes, RELU, first, count)
    else:
        _normalise(table, block, lanes, HARDSWISH, first, count)


@apart
def _forward(table: int, block: int, lanes: int, scratch: int) -> None:
    pixels = entry(table, BATCH)
    for batch in range(entry(table, BATCHES)):
        _measure(table, block, lanes, batch, scratch)
        _write(table, block, lanes, batch * pixels, pixels)
    if not entry(table, BATCHES):
        _take_running(table, block, lanes)
        _write(table, block, lanes, 0, entry(table, PIXELS))


@apart
def _backward(table: int, block: int, lanes: int) -> None:
    if entry(table, ACTIVATION) == NONE:
        _differentiate(table, block, lanes, NONE)
    elif entry(table, ACTIVATION) == RELU:
        _differentiate(table, block, lanes, RELU)
    else:
        _differentiate(table, block, lanes, HARDSWISH)


@inlined
def _run_block(table: int, block: int, lanes: int, scratch: int) -> None:
    if entry(table, GRAD_X):
        _backward(table, block, lanes)
    else:
        _forward(table, block, lanes, scratch)


@apart
def run_batch_norm(table: int) -> None:
    """Forward where the gradient of the input has no address, else backward."""
    channels, scratch = entry(table, CHANNELS), entry(table, SCRATCH) + claim(table + 8 * SLOT) * 2 * BYTES
    block = claim(table + 8 * NEXT)
    while block < blocks(channels):
        lanes = min(LANES, channels - block * LANES)
        if lanes == LANES:
            _run_block(table, block, LANES, scratch)
        else:
            _run_block(table, block, lanes, scratch)
        block = claim(table + 8 * NEXT)
