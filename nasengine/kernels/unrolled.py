"""Tiles of `nasengine.kernels.tiles` whose loads are shared: one for every two or three products. Needs numba.

Processors load about as many vectors as they multiply, so a tile that loads both factors of every product runs at half
the speed. These are unrolled for a given kernel, dilation and stride, and written for LLVM directly.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types

from nasengine.kernels.vectors import BYTES, Signature, fused, intrinsic, load_at, splat_at, vector


class _Loads:
    """Every address is loaded once."""

    def __init__(self, builder: Any, read: Callable[[Any, Any], Any]) -> None:
        self.builder, self.read, self.found = builder, read, dict[tuple[Any, int], Any]()

    def __call__(self, base: Any, offset: int) -> Any:
        if (base, offset) not in self.found:
            address = self.builder.add(base, ir.Constant(ir.IntType(64), offset))
            self.found[base, offset] = self.read(self.builder, address)
        return self.found[base, offset]


def _unpacked(builder: Any, tile: Any, count: int) -> list[Any]:
    return [builder.extract_value(tile, index) for index in range(count)]


@intrinsic(prefer_literal=True)
def row_of_taps(typing: Any, tile: Any, at: Any, weights: Any, kernel: Any, stride: Any, dilation: Any) -> Signature:
    """Eight sums (pixels next to each other) with a row of a kernel more; the last three are literal."""
    taps, apart, gap = kernel.literal_value, stride.literal_value, dilation.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, load = _unpacked(builder, arguments[0], 8), _Loads(builder, load_at)
        for tap in range(taps):
            weight = load(arguments[2], tap * BYTES)
            for pixel in range(8):
                value = load(arguments[1], (pixel * apart + tap * gap) * BYTES)
                sums[pixel] = fused(builder, value, weight, sums[pixel])
        return cgutils.pack_array(builder, sums)

    return types.UniTuple(vector, 8)(tile, types.int64, types.int64, kernel, stride, dilation), generate


@intrinsic(prefer_literal=True)
def gradients_of_rows(
    typing: Any, sums: Any, at: Any, row: Any, g: Any, kernel: Any, stride: Any, dilation: Any, pixels: Any
) -> Signature:
    """Sums for all taps of some rows of a kernel, with the products of u and g at pixels next to each other more.

    `row` is the bytes from a row of taps to the next; the last four are literal.
    """
    taps, apart, gap, count = (literal.literal_value for literal in (kernel, stride, dilation, pixels))
    total = sums.count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found, load = _unpacked(builder, arguments[0], total), _Loads(builder, load_at)
        base = arguments[1]
        for first in range(0, total, taps):
            for pixel in range(count):
                for tap in range(taps):
                    value = load(base, (pixel * apart + tap * gap) * BYTES)
                    gradient = load(arguments[3], pixel * BYTES)
                    found[first + tap] = fused(builder, value, gradient, found[first + tap])
            base = builder.add(base, arguments[2])
        return cgutils.pack_array(builder, found)

    return sums(sums, types.int64, types.int64, types.int64, kernel, stride, dilation, pixels), generate


@intrinsic(prefer_literal=True)
def channels_of_pixels(
    typing: Any, sums: Any, at: Any, step: Any, weights: Any, row: Any, plane: Any, channels: Any, pixels: Any
) -> Signature:
    """Sums (blocks of outputs, pixels) with the products of some channels of the pixels and rows of a matrix more.

    The matrix has its blocks `plane` bytes apart, their rows `row`. The last two are literal.
    """
    depth, count, total = channels.literal_value, pixels.literal_value, sums.count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile, at, step, weights, row, plane = arguments[:6]
        found, matrix = _unpacked(builder, tile, total), [weights]
        pixel = [at]
        for _ in range(count - 1):
            pixel.append(builder.add(pixel[-1], step))
        for _ in range(total // count - 1):
            matrix.append(builder.add(matrix[-1], plane))
        for channel in range(depth):
            rows = [load_at(builder, base) for base in matrix]
            matrix = [builder.add(base, row) for base in matrix]
            for place, base in enumerate(pixel):
                address = builder.add(base, ir.Constant(ir.IntType(64), 4 * channel))
                value = splat_at(builder, address)
                for block, weight in enumerate(rows):
                    index = block * count + place
                    found[index] = fused(builder, value, weight, found[index])
        return cgutils.pack_array(builder, found)

    six = (types.int64,) * 5
    return sums(sums, *six, channels, pixels), generate


@intrinsic(prefer_literal=True)
def load_tile(typing: Any, at: Any, step: Any, count: Any) -> Signature:
    """So many vectors, literally, `step` bytes apart."""
    total = count.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, found = arguments[0], []
        for _ in range(total):
            found.append(load_at(builder, address))
            address = builder.add(address, arguments[1])
        return cgutils.pack_array(builder, found)

    return types.UniTuple(vector, total)(types.int64, types.int64, count), generate


@intrinsic
def store_tile(typing: Any, at: Any, step: Any, tile: Any) -> Signature:
    """Writes vectors, `step` bytes apart."""
    total = tile.count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = arguments[0]
        for value in _unpacked(builder, arguments[2], total):
            builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)
            address = builder.add(address, arguments[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), generate


@intrinsic(prefer_literal=True)
def zero_tile(typing: Any, count: Any) -> Signature:
    """So many vectors of zeros, literally."""
    kind = types.UniTuple(vector, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), None)

    return kind(count), generate
