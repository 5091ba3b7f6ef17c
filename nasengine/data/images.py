"""Image files and image bytes, decoded with Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nasengine.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow also opens formats that start other programs (EPS starts Ghostscript): these do not.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_CHUNK = 64

S = TypeVar("S")
T = TypeVar("T")


def open_image(source: Path | bytes, name: str) -> Image:
    """The decoded first frame of an image; its mode is whatever the file has.

    Raises:
        DataError: the image does not decode, or has more than 8 bits per channel.
        OSError: the file cannot be read.
    """
    from PIL import Image

    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Every image must decode, but {name} does not: {_reason(error)}; replace or remove it."
        ) from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"Every image must have 8 bits per channel, but {name} has the mode {image.mode}; convert it.")
    return image


def parallel(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """`work` on all items, in as many threads as the processor has cores (Pillow decodes without the GIL)."""

    def run(start: int) -> list[T]:
        return [work(item) for item in items[start : start + _CHUNK]]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = pool.map(run, range(0, len(items), _CHUNK))
        return [result for chunk in chunks for result in chunk]


def _reason(error: Exception) -> str:
    return "it is not an image" if "cannot identify" in str(error) else str(error).rstrip(".")
