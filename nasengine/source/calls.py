"""Calls of modules and functions as text, in which what other calls gave is referred to."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nasengine.source.constructors import torch_class


@dataclass(frozen=True)
class Ref:
    """What a call gave, in the text of another one.

    Attributes:
        call: its place in the body.
        part: what is taken of it, such as "[0]".
        beside: the operator beside which it stands, "." where it must be one word.
    """

    call: int
    part: str = ""
    beside: str = ""


Piece = str | Ref


@dataclass(frozen=True)
class Call:
    """One call, as text with references.

    Attributes:
        pieces: the text.
        operator: of an expression with one, else empty.
        hint: a name for what it gives.
        effect: it changes tensors that were there before; its place among the others counts.
    """

    pieces: tuple[Piece, ...]
    operator: str
    hint: str
    effect: bool


@dataclass(frozen=True)
class Body:
    """What one module does: names and types of its arguments, calls, what it returns and the type of that."""

    arguments: tuple[tuple[str, str], ...]
    calls: tuple[Call, ...]
    returned: tuple[Piece, ...]
    returns: str

    @property
    def is_identity(self) -> bool:
        """Whether it gives back its only argument."""
        return not self.calls and len(self.arguments) == 1 and self.returned == (self.arguments[0][0],)


def is_sequence(module: nn.Module) -> bool:
    """Whether a module runs its children one after the other, and does nothing else."""
    return isinstance(module, nn.Sequential) and torch_class(module) is nn.Sequential


def path_text(root: nn.Module, path: str) -> str:
    """How Python reaches what is at a path below `root`: "self.cells[0].stem" for "cells.0.stem"."""
    text, module = "self", root
    for name in filter(None, path.split(".")):
        if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ParameterList)) and name.isdigit():
            text += f"[{name}]"
        elif isinstance(module, nn.ModuleDict):
            text += f"[{quoted(name)}]"
        else:
            text += f".{name}"
        module = module._modules.get(name) or module
    return text


def quoted(text: str) -> str:
    """A text literal."""
    return json.dumps(text, ensure_ascii=False)


def documented(text: str) -> str:
    """A text as it stands inside a docstring."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def annotation(value: object) -> str:
    """The type of an argument or a result, as it is annotated."""
    if isinstance(value, Tensor):
        return "Tensor"
    if isinstance(value, (tuple, list)) and all(isinstance(item, Tensor) for item in value):
        return "list[Tensor]" if isinstance(value, list) else "tuple[Tensor, ...]"
    return "Any"


def tensors(value: object, part: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside nested containers, and where they are in them."""
    if isinstance(value, Tensor):
        yield part, value
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            yield from tensors(item, f"{part}[{place}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{part}[{quoted(str(key))}]")


def bound(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments of a call of a module by the names of its forward."""
    signature = inspect.signature(module.forward)
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{place}", item) for place, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def joined(parts: Sequence[Sequence[Piece]]) -> list[Piece]:
    found: list[Piece] = []
    for place, part in enumerate(parts):
        found += [", ", *part] if place else part
    return found


def is_default(func: Any, name: str, value: object) -> bool:
    """Whether an argument is what a Python function takes without it."""
    if not inspect.isfunction(func) or isinstance(value, Tensor):
        return False
    known = inspect.signature(func).parameters.get(name)
    return known is not None and type(known.default) is type(value) and known.default == value
