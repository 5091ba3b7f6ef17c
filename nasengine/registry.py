"""Plug-ins by name: what comes with the project, what other packages announce, and one-offs given as `module:Class`.

The project's own plug-ins use the same door as a stranger's: a file in a scanned package, or an entry point of the
groups `nasengine.search_spaces`, `nasengine.algorithms` and `nasengine.predictors`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from nasengine.algorithm import Algorithm
from nasengine.errors import PLUGIN_FILE, NasengineError, SettingError, UnknownNameError, reason
from nasengine.module_space import as_space
from nasengine.space import Space

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name; the packages are scanned when a name is first asked for.

    Args:
        kind: what the classes are, for messages.
        base: the class they derive from; each has a class attribute `name`.
        package: the package whose modules are scanned; those that begin with "_" are left out.
        group: the entry-point group.
        adapt: makes a class of the kind out of what else is accepted.
    """

    def __init__(
        self, kind: str, base: type[T], package: str, group: str, adapt: Callable[[object], object] | None = None
    ) -> None:
        self.kind, self.base, self.package, self.group = kind, base, package, group
        self._adapt = adapt
        self._classes: dict[str, type[T]] | None = None

    @property
    def accepts(self) -> str:
        """What a plug-in must be, for messages."""
        return f"a subclass of {self.base.__name__}{' or of torch.nn.Module' if self._adapt is not None else ''}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._found())

    def __getitem__(self, name: str) -> type[T]:
        """The class of a name, `module:Class` or `path/file.py:Class`. Raises UnknownNameError or SettingError."""
        if ":" in name:
            return self._checked(load_named(self.kind, name), name)
        if name.endswith(".py"):
            raise SettingError(
                f"A file with a {self.kind} must come with a class in it, but got {name!r}; write {name}:CLASS."
            )
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
        package = self._imported(self.package)
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
        module = self._imported(module_name)
        return [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, self.base)
            and value.__module__ == module_name
            and self._name(value)
        ]

    def _imported(self, name: str) -> ModuleType:
        must = f"The module {name!r}, which is scanned for a {self.kind}, must be importable"
        return in_one_sentence(must, lambda: importlib.import_module(name))

    def _announced(self) -> list[type[T]]:
        return [
            self._checked(in_one_sentence(_must_be_importable(self.kind, point.value), point.load), point.value)
            for point in entry_points(group=self.group)
        ]

    def adapted(self, plugin: type, spec: str = "") -> type[T]:
        """A class that was given itself. Raises SettingError unless it is one of this kind."""
        return self._checked(plugin, spec or plugin.__qualname__)

    def _checked(self, plugin: object, spec: str) -> type[T]:
        plugin = self._adapt(plugin) if self._adapt is not None else plugin
        if not (inspect.isclass(plugin) and issubclass(plugin, self.base)):
            raise SettingError(f"The {self.kind} {spec!r} must be {self.accepts}, but is not: it is {_kind(plugin)}.")
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
        home = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
        script = kind.__module__ == "__main__" and home.endswith(".py")
        where = home if script or kind.__module__.startswith(PLUGIN_FILE) else kind.__module__
        return f"{where}:{kind.__qualname__}"

    @staticmethod
    def _name(plugin: type) -> str:
        return str(getattr(plugin, "name", ""))


def load_named(kind: str, spec: str) -> object:
    """What `module:name` or `path/file.py:name` names; `kind` says in messages what it should be.

    Raises:
        SettingError: the file is missing, or whatever went wrong while it was run, in one sentence.
    """
    where, _, name = spec.rpartition(":")

    def load() -> object:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
        try:
            return functools.reduce(getattr, name.split("."), module)
        except AttributeError:
            mine = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            raise SettingError(
                f"The {kind} {spec!r} must name something in its file, but there is no {name!r}; it has "
                f"{', '.join(mine) or 'nothing'}."
            ) from None

    return in_one_sentence(_must_be_importable(kind, spec), load)


def in_one_sentence(must: str, run: Callable[[], T]) -> T:
    """What `run` gives; whatever a stranger's code raises becomes a SettingError that begins with `must`."""
    try:
        return run()
    except NasengineError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingError(f"{must}, but got {reason(error)}.") from error


def importable(name: str) -> bool:
    """Whether a module of this dotted name may be found, from the working directory too; nothing is run."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    _search_working_directory()
    top = name.partition(".")[0]
    return top in sys.modules or importlib.util.find_spec(top) is not None


def _must_be_importable(kind: str, spec: str) -> str:
    return f"The {kind} {spec!r} must be importable"


def _kind(plugin: object) -> str:
    return f"the class {plugin.__name__}" if inspect.isclass(plugin) else f"of type {type(plugin).__name__}"


def _origin(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


def _search_working_directory() -> None:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _from_name(name: str) -> ModuleType:
    _search_working_directory()
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """The module of a file, which is run once: the class that a name finds twice is the same."""
    if not os.path.isfile(path):
        raise SettingError(f"A plug-in file must exist, but {path} does not.")
    path = path.resolve()
    script = sys.modules["__main__"]
    if path == Path(getattr(script, "__file__", None) or "").resolve():
        return script
    name = f"{PLUGIN_FILE}{path.stem}_{zlib.crc32(path.read_bytes(), zlib.crc32(str(path).encode())):08x}"
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


SPACES = Registry("search space", Space, "search_spaces", "nasengine.search_spaces", as_space)  # type: ignore[type-abstract]
ALGORITHMS = Registry("algorithm", Algorithm, "nasengine.algorithms", "nasengine.algorithms")  # type: ignore[type-abstract]
