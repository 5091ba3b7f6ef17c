"""How the C library keeps the memory that tensors on the CPU give back."""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGE = 2**31 - 1
_LARGEST_IN_HEAP = 32 * 2**20  # what glibc allows


@functools.cache
def keep_pages() -> bool:
    """Lets glibc keep freed memory of this process for its next tensors; whether it could.

    Else every block of 128 KiB or more goes back to the system when it is freed, and its next owner waits for fresh
    pages, zeroed one by one. What is kept is at most what was once needed at the same time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False  # another C library
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP) and mallopt(_TRIM_THRESHOLD, _LARGE))
