"""An ordinary module with choices inside as a search space."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from typing import Any

from torch import nn

from nasengine.errors import ArchitectureError, NasengineError, SettingError, reason
from nasengine.settings import setting, validate
from nasengine.space import Space
from nasengine.task import Shapes

_PLAIN = (bool, int, float, str, type(None), tuple[int, ...])


@functools.cache
def module_space(module: type[nn.Module]) -> type[Space]:
    """The space of a module class `Net(shapes, setting=default, ...)`: its further arguments are the settings.

    `shapes` is a `nasengine.Shapes`: the shape of one input and the number of outputs.

    Raises:
        SettingError: an argument cannot be a setting.
    """
    settings = _settings(module)

    def network(self: Space, shapes: Shapes) -> nn.Module:
        try:
            return module(shapes, **{name: getattr(self, name) for name in settings})
        except NasengineError:
            raise
        except Exception as error:
            raise ArchitectureError(
                f"{module.__name__} must be made for inputs of shape {shapes.input} and {shapes.outputs} outputs "
                f"without an error, but its constructor raised {reason(error)}{_advice(str(error))}."
            ) from error

    def body(namespace: dict[str, Any]) -> None:
        namespace |= {name: setting(default, f"of {module.__name__}") for name, (_, default) in settings.items()}
        namespace["__annotations__"] = {name: hint for name, (hint, _) in settings.items()}
        namespace |= {"name": module.__name__, "network": network, "__doc__": module.__doc__ or module.__name__}
        namespace |= {"__module__": module.__module__, "__qualname__": module.__qualname__}
        namespace["__post_init__"] = lambda self: validate(self, "space")

    made = types.new_class(module.__name__, (Space,), {}, body)
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


def _advice(raised: str) -> str:
    if "Size" in raised:
        return "; give a Size to elastic layers only, and reckon with it by Size.map"
    if "meta" in raised:
        return "; it is also made on the meta device, where tensors have no values: reckon with plain numbers"
    return ""


def as_space(plugin: object) -> object:
    """The space of a module class; anything else as it is. Raises SettingError."""
    if inspect.isclass(plugin) and issubclass(plugin, nn.Module):
        return module_space(plugin)  # type: ignore[arg-type]  # torch types the hash of modules, not of their classes
    return plugin


def _settings(module: type[nn.Module]) -> dict[str, tuple[Any, Any]]:
    """Type and default of every argument after the first, by name."""
    parameters = list(inspect.signature(module).parameters.values())
    _check_first(module, parameters)
    hints = _hints(module)
    found = {}
    for parameter in parameters[1:]:
        name, default = parameter.name, parameter.default
        hint = hints.get(name, tuple[int, ...] if isinstance(default, tuple) else type(default))
        if default is inspect.Parameter.empty or not _can_be_set(hint):
            came = f"{name!r} has no default" if default is inspect.Parameter.empty else f"{name!r} is no such value"
            raise SettingError(
                f"{module.__name__} must take shapes and then settings with defaults that are numbers, tuples of whole "
                f"numbers, texts, or true or false, but {came}; give it one."
            )
        if hasattr(Space, name):
            raise SettingError(
                f"A setting of {module.__name__} must have a name that spaces do not use themselves, but got {name!r}; "
                "rename the argument."
            )
        found[name] = (hint, default)
    return found


def _check_first(module: type[nn.Module], parameters: list[inspect.Parameter]) -> None:
    """Raises SettingError unless the first argument can be the shapes."""
    first = parameters[0] if parameters else None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if first is None or first.kind not in positional or first.default is not inspect.Parameter.empty:
        raise SettingError(
            f"{module.__name__} must take the shapes as its first argument to be a space, but takes "
            f"({', '.join(parameter.name for parameter in parameters)}); write def __init__(self, shapes, ...)."
        )


def _hints(module: type[nn.Module]) -> dict[str, Any]:
    """The types of the arguments; none where an annotation is not defined in the module of the class."""
    try:
        return typing.get_type_hints(module.__init__)
    except NameError:
        return {}


def _can_be_set(hint: Any) -> bool:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return all(map(_can_be_set, typing.get_args(hint)))
    return hint in _PLAIN or typing.get_origin(hint) is typing.Literal
