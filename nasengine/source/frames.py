"""What a module that runs knows: how each tensor is written inside it, and what it has called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import is_tensor_method_or_property

from nasengine.errors import ExportError
from nasengine.source.calls import Call, Piece, Ref, annotation, is_default, joined, path_text, quoted, tensors

BATCH: Final = 10007  # a prime that no other size is a multiple of
MOST_NUMBERS: Final = 1000

_INFIX: Final = (
    {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "**"}
    | {"subtract": "-", "multiply": "*", "true_divide": "/", "floor_divide": "//", "remainder": "%"}
    | {"gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!="}
)
_REFLECTED: Final = {"__rsub__": "-", "__rdiv__": "/", "__rtruediv__": "/", "__rpow__": "**", "__rmatmul__": "@"}
_HOMES: Final = (("F", F), ("torch", torch), ("torch.special", torch.special), ("torch.linalg", torch.linalg))


_HINTS: Final = {"add": "total", "sum": "total", "sub": "rest", "mul": "product", "matmul": "product", "cat": "joined"}


@dataclass(eq=False)
class Frame:
    """A module that runs.

    Attributes:
        module: the one.
        arguments: names and types of what it got.
        calls: what it has called.
        read: its weights that were read, with the modules that hold them.
    """

    module: nn.Module
    arguments: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    read: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    _known: dict[int, tuple[Tensor, Piece]] = field(default_factory=dict)  # the tensor is kept: ids are used again
    _batch: list[tuple[str, int]] = field(default_factory=list)

    def note(self, call: Call, result: object) -> None:
        """A call and what it gave."""
        self.calls.append(call)
        self._know(result, Ref(len(self.calls) - 1))

    def take(self, name: str, value: object) -> None:
        """An argument."""
        self.arguments.append((name, annotation(value)))
        self._know(value, name)
        for part, tensor in tensors(value):
            sizes = enumerate(tensor.shape)
            self._batch += [(f"{name}{part}.shape[{dim}]", size) for dim, size in sizes if size and size % BATCH == 0]

    def alias(self, tensor: Tensor, other: Tensor) -> None:
        """Another object that stands where a tensor stands."""
        if id(tensor) in self._known:
            self._known[id(other)] = (other, self._known[id(tensor)][1])

    def words(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Piece]:
        """Arguments as they stand in a call."""
        parts = [self.pieces(value) for value in args]
        parts += [[f"{name}=", *self.pieces(value)] for name, value in kwargs.items()]
        return joined(parts)

    def pieces(self, value: object, beside: str = "") -> list[Piece]:
        """A value: a tensor by where it is known, plain values as literals."""
        if isinstance(value, Tensor):
            return [self._tensor(value, beside)]
        if isinstance(value, (tuple, list)):
            inside = joined([self.pieces(item) for item in value])
            if isinstance(value, list):
                return ["[", *inside, "]"]
            return ["(", *inside, ",)" if len(value) == 1 else ")"]
        if isinstance(value, Mapping):
            entries = [[*self.pieces(key), ": ", *self.pieces(item)] for key, item in value.items()]
            return ["{", *joined(entries), "}"]
        if isinstance(value, slice):
            ends = [[] if end is None else self.pieces(end) for end in (value.start, value.stop)]
            step: list[Piece] = [] if value.step is None else [":", *self.pieces(value.step)]
            return [*ends[0], ":", *ends[1], *step]
        return [self._literal(value)]

    def _know(self, value: object, where: Piece) -> None:
        for part, tensor in tensors(value):
            whole = where + part if isinstance(where, str) else Ref(where.call, where.part + part)
            self._known[id(tensor)] = (tensor, whole)

    def _literal(self, value: object) -> str:
        if value is Ellipsis:
            return "..."
        if isinstance(value, str):
            return quoted(value)
        if value is None or isinstance(value, bool):
            return repr(value)
        if isinstance(value, int):
            return self._number(value)
        if isinstance(value, float):
            return repr(value) if abs(value) < float("inf") else f'float("{value}")'
        if isinstance(value, (torch.dtype, torch.memory_format)):
            return str(value)
        if isinstance(value, torch.device):
            return f"{self.arguments[0][0]}.device" if self.arguments else '"cpu"'
        raise ExportError(
            "Arguments must be tensors and plain values to be written as Python code, but "
            f"{type(self.module).__name__} passes a {type(value).__name__}; leave py out of the formats (--format)."
        )

    def _number(self, value: int) -> str:
        """A whole number; one that depends on the batch is taken from the shape of an argument."""
        if value == 0 or value % BATCH:
            return repr(value)
        if not self._batch:
            raise ExportError(
                "A module that depends on the size of the batch must get a tensor with it to be written as Python "
                f"code, but {type(self.module).__name__} does not; leave py out of the formats (--format)."
            )
        text, size = self._batch[0]
        times, of = value // BATCH, size // BATCH
        if times % of:
            return f"{times} * {text} // {of}"
        return text if times == of else f"{times // of} * {text}"

    def _tensor(self, tensor: Tensor, beside: str) -> Piece:
        if id(tensor) in self._known:
            where = self._known[id(tensor)][1]
            return where if isinstance(where, str) else Ref(where.call, where.part, beside)
        for path, module in self.module.named_modules():
            for name, own in (*module._parameters.items(), *module._buffers.items()):
                if own is tensor:
                    self.read.append((module, own))
                    return path_text(self.module, f"{path}.{name}" if path else name)
        if tensor.device.type == "meta" or tensor.numel() > MOST_NUMBERS:
            raise ExportError(
                "Tensors must come from the inputs or be weights to be written as Python code, but "
                f"{type(self.module).__name__} uses one of shape {tuple(tensor.shape)} from elsewhere; leave py out of "
                "the formats (--format), or register it as a buffer."
            )
        return f"torch.tensor({tensor.tolist()!r}, dtype={tensor.dtype})"


class FunctionCall:
    """One call of a function or method of torch inside a frame."""

    def __init__(self, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.frame, self.func, self.args, self.name = frame, func, args, str(func.__name__)
        self.kwargs = {name: value for name, value in kwargs.items() if not is_default(func, name, value)}

    def text(self, effect: bool) -> Call:
        """As it is written: with an operator, an index, as a method or as a function."""
        operator = _INFIX.get(self.name) or _REFLECTED.get(self.name) or ""
        if self.name == "neg" and len(self.args) == 1:
            operator, words = "-", ["-", *self._receiver()]
        elif operator and len(self.args) == 2 and not self.kwargs:
            left, right = self.args if self.name in _INFIX else reversed(self.args)
            words = [*self.frame.pieces(left, operator), f" {operator} ", *self.frame.pieces(right, ".")]
        else:
            operator, words = "", self._words()
        name = self.name.strip("_")
        hint = "part" if name in ("getitem", "get") else _HINTS.get(name, name)
        return Call(tuple(words), operator, hint, effect)

    def _words(self) -> list[Piece]:
        if self.name == "__getitem__":
            return [*self._receiver(), *self._index()]
        if self.name == "__setitem__":
            return [*self._receiver(), *self._index(), " = ", *self.frame.pieces(self.args[2])]
        if self.name == "__get__":
            return [*self._receiver(), f".{self.func.__self__.__name__}"]
        if is_tensor_method_or_property(self.func) or getattr(Tensor, self.name, None) == self.func:
            return [*self._receiver(), f".{self.name}(", *self.frame.words(self.args[1:], self.kwargs), ")"]
        return [f"{self._home()}(", *self.frame.words(self.args, self.kwargs), ")"]

    def _receiver(self) -> list[Piece]:
        return self.frame.pieces(self.args[0], ".")

    def _index(self) -> list[Piece]:
        index = self.args[1]
        if isinstance(index, tuple) and index:
            return ["[", *joined([self.frame.pieces(item) for item in index]), "]"]
        return ["[", *self.frame.pieces(index), "]"]

    def _home(self) -> str:
        for text, home in _HOMES:
            if getattr(home, self.name, None) is self.func:
                return f"{text}.{self.name}"
        raise ExportError(
            "Functions must be of torch or torch.nn.functional to be written as Python code, but "
            f"{type(self.frame.module).__name__} calls {self.name!r}; leave py out of the formats (--format)."
        )
