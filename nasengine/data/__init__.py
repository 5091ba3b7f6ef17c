"""Data by name: "digits", "cifar10:PATH", "file.py:name"; everything is read from local files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nasengine.data import cifar, digits, imagefolder, npz, own, tables
from nasengine.data.sizes import adjusted, fewer, resized
from nasengine.errors import DataError, UnknownNameError
from nasengine.task import Dataset, DataSettings, Task


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One kind of data: `load(path, image_size)` reads it; without `needs_path` the path means nothing.

    `path_is` says what stands after the colon: a path, or a name.
    """

    name: str
    summary: str
    needs_path: bool
    load: Callable[[Path, int | None], Dataset]
    path_is: str = "path"


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme(
                name="digits",
                summary="1,797 grey 8x8 images of handwritten digits that come with scikit-learn",
                needs_path=False,
                load=lambda path, image_size: digits.load(),
            ),
            Scheme(
                name="sklearn",
                summary="small tables that come with scikit-learn: iris, wine, breast_cancer; diabetes (a regression)",
                needs_path=True,
                load=lambda path, image_size: tables.load(str(path)),
                path_is="name",
            ),
            Scheme(
                name="cifar10",
                summary="CIFAR-10 as official Python batches or Hugging Face parquet files",
                needs_path=True,
                load=lambda path, image_size: cifar.load(path, cifar.CIFAR10),
            ),
            Scheme(
                name="cifar100",
                summary="CIFAR-100 as official Python batches or Hugging Face parquet files",
                needs_path=True,
                load=lambda path, image_size: cifar.load(path, cifar.CIFAR100),
            ),
            Scheme(
                name="imagefolder",
                summary="image files in train/<class>/ and test/<class>/, or in <class>/ alone",
                needs_path=True,
                load=imagefolder.load,
            ),
            Scheme(
                name="npz",
                summary="NumPy arrays x, y and optionally x_test, y_test in one .npz file",
                needs_path=True,
                load=lambda path, image_size: npz.load(path),
            ),
        )
    }
)


def load_dataset(spec: str, image_size: int | None = None) -> Dataset:
    """The data set of "scheme" or "scheme:PATH", its images resized to `image_size` pixels a side if that is given.

    Raises:
        UnknownNameError: no scheme has that name.
        DataError: a path is missing or superfluous, or the files are missing, damaged or not what they claim to be.
        SettingError: an image size for data that are not images.
    """
    name, _, path = spec.partition(":")
    if name not in SCHEMES:
        raise UnknownNameError("data scheme", name, SCHEMES)
    scheme = SCHEMES[name]
    if scheme.needs_path and not path:
        raise DataError(
            f"The data scheme {name} must come with a {scheme.path_is}, but got {spec!r}; write "
            f"{name}:{scheme.path_is.upper()}."
        )
    if path and not scheme.needs_path:
        raise DataError(f"The data scheme {name} must come without a path, but got {spec!r}; write {name}.")
    try:
        dataset = scheme.load(Path(path).expanduser(), image_size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"The data {spec!r} must be readable, but {error.filename or path}: {reason}.") from error
    return dataset if image_size is None else resized(dataset, image_size)


def load(spec: str, settings: DataSettings | None = None) -> Task:
    """What `nasengine.task.load_task` says."""
    found = own_task(spec)
    if found is not None:
        return adjusted(found, settings or found.settings)
    settings = settings or DataSettings()
    dataset = load_dataset(spec, settings.image_size)
    if settings.train_size is not None:
        dataset = fewer(dataset, settings.train_size)
    return Task(dataset=dataset, settings=settings)


def own_task(spec: str) -> Task | None:
    """The task that "file.py:name" or "module:name" names, as its author made it; None where a spec is no such text.

    Raises:
        SettingError: the file or module cannot be imported, or the function in it fails.
        DataError: it names no data, or names nothing in a file.
    """
    if spec.endswith(".py"):
        raise DataError(f"A file with data must come with a name in it, but got {spec!r}; write {spec}:NAME.")
    return own.load(spec) if spec.partition(":")[0] not in SCHEMES and own.names_own(spec) else None
