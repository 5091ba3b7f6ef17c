"""A device that has no numbers stands for an accelerator: whoever waits for what it computes is found.

Tensors on the meta device have shapes alone. Steps that run on it launch what they would launch on a GPU, by the same
plain modules, and each read of a number, or copy from or to main memory that a GPU would have to be waited for, shows.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META: Final = torch.device("meta")
aten = torch.ops.aten
_READS: Final = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero)
_COPIES: Final = (aten._to_copy, aten.copy_)
_INDEXING: Final = (aten.index, aten.index_put, aten.index_put_)
_WATCHED: Final = {*_READS, *_COPIES, *_INDEXING}
_FROM_NUMBERS: Final = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_ITEMS: Final = (Tensor.__getitem__, Tensor.__setitem__)


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        if name in _WATCHED:
            devices = _devices([*args, *kwargs.values()])
            waiting = META in devices
            if name in _COPIES:
                waiting = len(devices) > 1 and not (kwargs.get("non_blocking") or args[2:] == (True,))
            if name in _INDEXING and waiting:
                indices = [index for index in args[1] if index is not None]
                waiting = any(index.dtype == torch.bool or index.device != META for index in indices)
            if waiting:
                self._found.append(f"{func} at {_place()}")
        return func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    """Sees what makes tensors of Python's numbers, which torch does in main memory, behind the back of operations."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = args[0].device if args and isinstance(args[0], Tensor) else None
        if func in _FROM_NUMBERS and torch.device(kwargs.get("device") or own or "cpu") == META:
            self._found.append(f"{func.__name__} at {_place()}")
        if func in _ITEMS and own == META:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, (list, bool)) for index in indices):
                self._found.append(f"{func.__name__} at {_place()}")
        return func(*args, **kwargs)


@contextmanager
def waits() -> Iterator[list[str]]:
    """A block in which waits for the meta device are noted, with the line that waits."""
    found: list[str] = []
    with _Operations(found), _Calls(found):
        yield found


def _devices(value: Any) -> set[torch.device]:
    if isinstance(value, Tensor):
        return {value.device}
    if isinstance(value, torch.device):
        return {value}
    return set().union(*map(_devices, value)) if isinstance(value, (list, tuple)) else set()


def _place() -> str:
    """The innermost line of the project."""
    root = Path(__file__).parents[2]
    own = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(root)]
    own = [frame for frame in own if Path(frame.filename) != Path(__file__)]
    return f"{Path(own[-1].filename).relative_to(root)}:{own[-1].lineno} {own[-1].line}" if own else "?"
