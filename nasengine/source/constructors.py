"""The Python text that makes one of torch's own modules anew, without its weights."""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch
from torch import Tensor, nn

_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_ELSEWHERE: Final = ("device", "dtype")  # arguments that are no part of what a module is


def constructor(module: nn.Module) -> str | None:
    """Text such as "nn.Conv2d(3, 16, 3, padding=1, bias=False)"; None where the module is not one of torch's own.

    A subclass that computes what one of them computes is it, which it says by an attribute `plain`. The text is tried:
    what it makes has the same settings and weights of the same shapes.
    """
    kind = torch_class(module)
    if kind is None or isinstance(module, _CONTAINERS):
        return None
    words = _arguments(kind, module)
    if words is None or not _makes_the_same(kind, module, words):
        return None
    for word in [word for word in words if word[0] is not None]:
        fewer = [other for other in words if other is not word]
        words = fewer if _makes_the_same(kind, module, fewer) else words
    texts = [repr(value) if place is None else f"{place}={value!r}" for place, value in words]
    return f"nn.{kind.__name__}({', '.join(texts)})"


def torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn whose forward a module has, or that its class names as `plain`."""
    named = vars(type(module)).get("plain")
    if isinstance(named, type) and issubclass(named, nn.Module):
        return named
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.") and getattr(nn, kind.__name__, None) is kind:
            same = getattr(kind, "forward", None) is type(module).forward and kind is not nn.Module
            return kind if same else None
    return None


def _arguments(kind: type[nn.Module], module: nn.Module) -> list[tuple[str | None, Any]] | None:
    """Arguments of the constructor, (None, value) by place and (name, value) by name; None if they are not known."""
    found: list[tuple[str | None, Any]] = []
    for name, parameter in _parameters(kind).items():
        if name in _ELSEWHERE or name.startswith("_"):
            continue
        if not hasattr(module, name):
            if parameter.default is inspect.Parameter.empty:
                return None
            continue
        value = _plain(getattr(module, name), parameter.default)
        if not _is_literal(value):
            return None
        if parameter.default is inspect.Parameter.empty:
            found.append((None, value))
        elif value != parameter.default or type(value) is not type(parameter.default):
            found.append((name, value))
    return found


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Of the first constructor among the base classes that names them."""
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = dict(inspect.signature(base).parameters)
            if base is nn.RNNBase:
                parameters.pop("mode")  # which the class itself gives
            if all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
                return parameters
    return {}


def _plain(value: Any, default: Any) -> Any:
    """As it is written: a bias as whether there is one, equal numbers of a tuple as one."""
    if isinstance(default, bool) and (value is None or isinstance(value, Tensor)):
        return value is not None
    if isinstance(value, (tuple, list)):
        items = tuple(value)
        one = len(set(items)) == 1 and not isinstance(default, tuple) and all(isinstance(n, int) for n in items)
        return items[0] if one else items
    return value


def _is_literal(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _makes_the_same(kind: type[nn.Module], module: nn.Module, words: list[tuple[str | None, Any]]) -> bool:
    placed = [value for name, value in words if name is None]
    named = {name: value for name, value in words if name is not None}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made = kind(*placed, **named)
    except (TypeError, ValueError, RuntimeError):
        return False
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (made, module)]
    settings = {name: value for name, value in vars(made).items() if _is_literal(value) and name != "training"}
    return shapes[0] == shapes[1] and all(vars(module).get(name) == value for name, value in settings.items())
