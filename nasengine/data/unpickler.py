"""Reads the pickles of the CIFAR batches without running anything that they name."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasengine.errors import DataError

_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class _Array:
    """Stands for an array while unpickling; NumPy's own code is not run on what a file says."""

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """Stands for a dtype; remembers only its name."""

    def __init__(self, name: object, *flags: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for the only type that is accepted, uint8."""


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not used by CIFAR")
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Forbidden(Exception):
    """A global that no CIFAR batch names."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise _Forbidden(f"{module}.{name}")
        return _GLOBALS[module, name]


def read_batch(path: Path) -> dict[str, object]:
    """The dictionary of a pickled batch; text is bytes if Python 2 wrote it, an array is what `as_uint8` reads.

    Raises:
        DataError: the file is damaged, is no dictionary, or names a global beyond those that rebuild an array.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _Forbidden as error:
        raise DataError(
            f"{path} must hold plain arrays, but names {error}, which nasengine refuses to load."
        ) from error
    except _DAMAGE as error:
        raise DataError(f"{path} must be a CIFAR batch, but does not unpickle ({error}); unpack it anew.") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path} must hold a dictionary, but holds {type(batch).__name__}; unpack it anew.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}


def as_uint8(value: object, where: str) -> NDArray[np.uint8]:
    """The array that a value of `read_batch` stands for.

    Raises:
        DataError: it is not a complete uint8 array; `where` begins the sentence.
    """
    match value:
        case _Array(state=(_, tuple(shape), _Dtype(name="u1"), fortran, bytes(content))) if _fits(shape, content):
            flat: NDArray[np.uint8] = np.frombuffer(content, dtype=np.uint8)
            return flat.reshape(shape, order="F" if fortran else "C")
    raise DataError(f"{where} must be a complete uint8 array, but is not; unpack the archive anew.")


def _fits(shape: tuple[object, ...], content: bytes) -> bool:
    sizes = [size for size in shape if isinstance(size, int) and size >= 0]
    return len(sizes) == len(shape) and int(np.prod(sizes, dtype=object)) == len(content)
