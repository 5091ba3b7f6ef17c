"""The compiled kernels, for channels-last float32. Needs numba.

In those of `nasengine.separable` a band of rows of an image goes through everything while it is in the cache of its
core: u, the rectified input; v, its depthwise convolution; y; and back: g, the gradient of y, those of v, of u and of
x, and of the weights. Only x, y and their gradients are ever in memory.

Threads take chunks of images from a counter. Sums over images are kept a chunk and added in the order of the chunks
by whoever is last, so that the bits depend neither on the number of threads nor on their timing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from numba import cfunc, types

from nasengine.kernels.backward import run_backward
from nasengine.kernels.batch_norm import run_batch_norm
from nasengine.kernels.depthwise import run_depthwise
from nasengine.kernels.forward import run_forward
from nasengine.kernels.mixing import run_mixing_backward, run_mixing_forward, run_moments

_KERNEL: Final[Any] = types.void(types.int64)


@functools.cache
def _digest() -> int:
    """Of the sources, since numba's cache by itself would notice a change in this file only."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return int.from_bytes(hashlib.sha256(b"".join(path.read_bytes() for path in sources)).digest()[:6], "big")


def _address(kernel: Callable[[int], None]) -> int:
    """Compiles a kernel, or finds it in the cache: beside this file, else where NUMBA_CACHE_DIR or the user has it."""
    try:
        decorate: Any = cfunc(_KERNEL, cache=True)
        return int(decorate(kernel).address)
    except RuntimeError:  # no folder can be written: a cache is refused, kernels are not
        decorate = cfunc(_KERNEL)
        return int(decorate(kernel).address)


@functools.cache
def forward_address() -> int:
    """The address of the forward kernel, a C function of the address of a table; compiled once a machine."""
    digest = _digest()

    def forward(table: int) -> None:
        if digest:
            run_forward(table)

    return _address(forward)


@functools.cache
def backward_address() -> int:
    """The address of the backward kernel, which writes the gradients of whatever has an address for them."""
    digest = _digest()

    def backward(table: int) -> None:
        if digest:
            run_backward(table)

    return _address(backward)


@functools.cache
def mixing_forward_address() -> int:
    """The address of the kernel that adds up terms; its table is that of `nasengine.kernels.mixing`."""
    digest = _digest()

    def mixing_forward(table: int) -> None:
        if digest:
            run_mixing_forward(table)

    return _address(mixing_forward)


@functools.cache
def mixing_backward_address() -> int:
    """The address of the kernel of its gradients."""
    digest = _digest()

    def mixing_backward(table: int) -> None:
        if digest:
            run_mixing_backward(table)

    return _address(mixing_backward)


@functools.cache
def moments_address() -> int:
    """The address of the kernel of means and squared deviations, with the same table of one term."""
    digest = _digest()

    def moments(table: int) -> None:
        if digest:
            run_moments(table)

    return _address(moments)


@functools.cache
def depthwise_address() -> int:
    """The address of the kernel of `nasengine.depthwise`."""
    digest = _digest()

    def depthwise(table: int) -> None:
        if digest:
            run_depthwise(table)

    return _address(depthwise)


@functools.cache
def batch_norm_address() -> int:
    """The address of the kernel of `nasengine.batch_norm`."""
    digest = _digest()

    def batch_norm(table: int) -> None:
        if digest:
            run_batch_norm(table)

    return _address(batch_norm)


ADDRESSES: Final[Mapping[str, Callable[[], int]]] = {
    "forward": forward_address,
    "backward": backward_address,
    "mixing_forward": mixing_forward_address,
    "mixing_backward": mixing_backward_address,
    "moments": moments_address,
    "depthwise": depthwise_address,
    "batch_norm": batch_norm_address,
}
"""All kernels by name; one is compiled, or found in the cache, when its address is asked for."""


def compile_all() -> None:
    """Compiles all kernels, or finds them in the cache."""
    for address in ADDRESSES.values():
        address()
