"""Plug-ins by name: what comes with the project, what other packages announce, and one-offs given as `module:Class`.

The project's own plug-ins use the same door as a stranger's: a file in a scanned package, or an entry point of the
groups `nasengine.search_spaces`, `nasengine.algorithms` and `nasengine.predictors`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Generic, TypeVar

from nasengine.algorithm import Algorithm
from nasengine.errors import NasengineError, SettingError, UnknownNameError
from nasengine.space import Space

T = TypeVar("T")
_FILE: Final = "nasengine_plugin_"  # begins the names of modules from files


class Registry(Generic[T]):
    """Classes of one kind by name; the packages are scanned when a name is first asked for.

    Args:
        kind: what the classes are, for messages.
        base: the class they derive from; each has a class attribute `name`.
        package: the package whose modules are scanned; those that begin with "_" are left out.
        group: the entry-point group.
    """

    def __init__(self, kind: str, base: type[T], package: str, group: str) -> None:
        self.kind, self.base, self.package, self.group = kind, base, package, group
        self._classes: dict[str, type[T]] | None = None

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._found())

    def __getitem__(self, name: str) -> type[T]:
        """The class of a name, `module:Class` or `path/file.py:Class`. Raises UnknownNameError or SettingError."""
        if ":" in name:
            return self._one_off(name)
        found = self._found()
        if name not in found:
            raise UnknownNameError(self.kind, name, found)
        return found[name]

    def _found(self) -> dict[str, type[T]]:
        if self._classes is None:
            classes: dict[str, type[T]] = {}
            for plugin in [*self._scanned(), *self._announced()]:
                name = self._name(plugin)
                if classes.setdefault(name, plugin) is not plugin:
                    raise SettingError(
                        f"Every {self.kind} must have a name of its own, but {name!r} is both "
                        f"{_origin(classes[name])} and {_origin(plugin)}; rename one."
                    )
            self._classes = classes
        return self._classes

    def _scanned(self) -> list[type[T]]:
        package = importlib.import_module(self.package)
        where = list(getattr(package, "__path__", [])) or [str(getattr(package, "__file__", self.package))]
        modules = [name for _, name, _ in pkgutil.iter_modules(where) if not name.startswith("_")]
        found = [plugin for name in modules for plugin in self._inside(f"{self.package}.{name}")]
        if not found:
            raise SettingError(
                f"There must be a {self.kind} in {where[0]}, but there is none: a folder or file of yours called "
                f"{self.package!r} hides the one of nasengine; rename it or start elsewhere."
            )
        return found

    def _inside(self, module_name: str) -> list[type[T]]:
        module = importlib.import_module(module_name)
        return [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, self.base)
            and value.__module__ == module_name
            and self._name(value)
        ]

    def _announced(self) -> list[type[T]]:
        return [
            self._checked(self._told(point.value, point.load), point.value) for point in entry_points(group=self.group)
        ]

    def _one_off(self, spec: str) -> type[T]:
        where, _, class_name = spec.rpartition(":")

        def load() -> object:
            module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
            return getattr(module, class_name)

        return self._checked(self._told(spec, load), spec)

    def _told(self, spec: str, load: Callable[[], object]) -> object:
        """What `load` gives; whatever a stranger's module raises becomes a sentence."""
        try:
            return load()
        except NasengineError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
            raise SettingError(f"The {self.kind} {spec!r} must be importable, but got {reason}.") from error

    def _checked(self, plugin: object, spec: str) -> type[T]:
        if not (inspect.isclass(plugin) and issubclass(plugin, self.base)):
            raise SettingError(f"The {self.kind} {spec!r} must be a subclass of {self.base.__name__}, but is not.")
        return plugin

    def get(self, name: str) -> type[T] | None:
        """The class of a name, or None."""
        try:
            return self[name]
        except NasengineError:
            return None

    def spec(self, plugin: T) -> str:
        """The text by which the class of an instance is found again: its name, `module:Class` or `file.py:Class`."""
        kind = type(plugin)
        name = self._name(kind)
        if self._found().get(name) is kind:
            return name
        home = (
            getattr(sys.modules.get(kind.__module__), "__file__", None) if kind.__module__.startswith(_FILE) else None
        )
        return f"{home or kind.__module__}:{kind.__qualname__}"

    @staticmethod
    def _name(plugin: type) -> str:
        return str(getattr(plugin, "name", ""))


def _origin(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


def _from_name(name: str) -> object:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return importlib.import_module(name)


def _from_file(path: Path) -> object:
    """The module of a file, which is run once: the class that a name finds twice is the same."""
    if not os.path.isfile(path):
        raise SettingError(f"A plug-in file must exist, but {path} does not.")
    path = path.resolve()
    name = f"{_FILE}{path.stem}_{zlib.crc32(path.read_bytes(), zlib.crc32(str(path).encode())):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SettingError(f"A plug-in file must be Python, but {path} is not.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


SPACES = Registry("search space", Space, "search_spaces", "nasengine.search_spaces")  # type: ignore[type-abstract]
ALGORITHMS = Registry("algorithm", Algorithm, "nasengine.algorithms", "nasengine.algorithms")  # type: ignore[type-abstract]
