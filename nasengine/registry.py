"""Plug-ins by name: what comes with the project, what other packages announce, and one-offs given as `module:Class`.

The project's own plug-ins use the same door as a stranger's: a file in a scanned package, or an entry point of the groups
`nasengine.search_spaces`, `nasengine.algorithms` and `nasengine.predictors`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar, cast

from nasengine.algorithm import Algorithm
from nasengine.errors import NasengineError, SettingError, UnknownNameError
from nasengine.space import Space

T = TypeVar("T")


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
        """The class of a name, of `module:Class`, or of `path/file.py:Class`. Raises UnknownNameError or SettingError."""
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
        modules = [name for _, name, _ in pkgutil.iter_modules(package.__path__) if not name.startswith("_")]
        found = [plugin for name in modules for plugin in self._inside(f"{self.package}.{name}")]
        if not found:
            raise SettingError(
                f"There must be a {self.kind} in {list(package.__path__)[0]}, but there is none: a folder of yours called "
                f"{self.package!r} hides the one of nasengine; rename it or start elsewhere."
            )
        return found

    def _inside(self, module_name: str) -> list[type[T]]:
        module = importlib.import_module(module_name)
        return [
            cast("type[T]", value)
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, self.base) and value.__module__ == module_name and self._name(value)
        ]

    def _announced(self) -> list[type[T]]:
        return [self._checked(point.load(), point.value) for point in entry_points(group=self.group)]

    def _one_off(self, spec: str) -> type[T]:
        where, _, class_name = spec.rpartition(":")
        try:
            module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
            plugin = getattr(module, class_name)
        except NasengineError:
            raise
        except Exception as error:  # whatever a stranger's module raises is to be told, not to be a traceback
            raise SettingError(f"The {self.kind} {spec!r} must be importable, but {type(error).__name__}: {error}.") from error
        return self._checked(plugin, spec)

    def _checked(self, plugin: object, spec: str) -> type[T]:
        if not (inspect.isclass(plugin) and issubclass(plugin, self.base)):
            raise SettingError(f"A {self.kind} must be a subclass of {self.base.__name__}, but {spec!r} is not.")
        return cast("type[T]", plugin)

    def get(self, name: str) -> type[T] | None:
        """The class of a name, or None."""
        try:
            return self[name]
        except NasengineError:
            return None

    def spec(self, plugin: T) -> str:
        """The text under which the class of an instance can be found again: its name, or `module:Class`."""
        name = self._name(type(plugin))
        known = self._found().get(name) is type(plugin)
        return name if known else f"{type(plugin).__module__}:{type(plugin).__qualname__}"

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
    if not path.is_file():
        raise SettingError(f"A plug-in file must exist, but {path} does not.")
    name = f"nasengine_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SettingError(f"A plug-in file must be Python, but {path} is not.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SPACES = Registry("search space", cast("type[Space]", Space), "search_spaces", "nasengine.search_spaces")
ALGORITHMS = Registry("algorithm", cast("type[Algorithm]", Algorithm), "nasengine.algorithms", "nasengine.algorithms")  # type: ignore[type-arg]
