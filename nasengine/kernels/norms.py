"""Batch norms by given moments: what they multiply by, and the gradients of all that they are made of. Needs numba.

A norm gives gamma * (x - mean) / sqrt(var + eps) + beta. The mean is subtracted before anything is multiplied, as are
those in sums of products with gradients: else a mean that is large beside the deviation costs digits.
"""
# mypy: disable-error-code="untyped-decorator, no-any-return, no-untyped-call, misc"

from __future__ import annotations

import math

from numba import types

from nasengine.kernels.tiles import inlined
from nasengine.kernels.vectors import number, put_number


@inlined
def optional(address: int, channel: int, otherwise: float) -> float:
    """A number of a channel, or another one where there is no address."""
    return types.float64(number(address + 4 * channel)) if address else otherwise


@inlined
def inverse_deviation(var: int, channel: int, eps: float) -> float:
    """1 / sqrt(var + eps); 1 without a variance."""
    return 1.0 / math.sqrt(types.float64(number(var + 4 * channel)) + eps) if var else 1.0


@inlined
def put(address: int, channel: int, value: float) -> None:
    """Writes a number of a channel, if there is an address."""
    if address:
        put_number(address + 4 * channel, types.float32(value))


@inlined
def put_onto(address: int, channel: int, value: float, onto: bool) -> None:
    """Writes a number of a channel, or adds to what is there, if there is an address."""
    if address:
        before = types.float64(number(address + 4 * channel)) if onto else 0.0
        put_number(address + 4 * channel, types.float32(before + value))
