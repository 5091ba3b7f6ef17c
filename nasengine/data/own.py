"""Data of one's own: a Dataset, a Task or a function that gives one, named `path/file.py:name` or `module:name`."""

from __future__ import annotations

from pathlib import Path

from nasengine.errors import DataError
from nasengine.registry import importable, in_one_sentence, load_named
from nasengine.task import Dataset, Task


def names_own(spec: str) -> bool:
    """Whether a spec names something in a Python file, or in a module that can be found."""
    where, colon, _ = spec.rpartition(":")
    return bool(colon) and (where.endswith(".py") or importable(where))


def absolute(spec: str) -> str:
    """`spec` with the absolute path of its Python file, so that it is found from any directory; others as they are."""
    where, colon, name = spec.rpartition(":")
    return f"{Path(where).expanduser().resolve()}:{name}" if colon and where.endswith(".py") else spec


def load(spec: str) -> Task:
    """The task that a spec names; a Dataset becomes a task with the default settings, loss and measure.

    Raises:
        SettingError: the file or module cannot be imported, or the function in it fails.
        DataError: it names something else.
    """
    found = load_named("data", absolute(spec))
    if not isinstance(found, (Dataset, Task)) and callable(found):
        found = in_one_sentence(f"The function behind the data {spec!r} must return without an error", found)
    if isinstance(found, Dataset):
        return in_one_sentence(f"The data {spec!r} must make a task", lambda: Task(dataset=found))
    if not isinstance(found, Task):
        raise DataError(
            f"The data {spec!r} must be a Dataset, a Task, or a function without arguments that gives one, but got "
            f"{type(found).__name__}."
        )
    return found
