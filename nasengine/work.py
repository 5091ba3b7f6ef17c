"""How much every module of a network computes by itself, each time it is called from another place."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Path = tuple[nn.Module, ...]
"""Modules, each called by the one before it."""


class OwnWork(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-adds that every module does outside its children, on the meta device.

    There what an operation costs and gives depends on shapes alone: each is computed once per shapes, since torch's
    kernels for the meta device are slow and the cells of a network are much alike.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = list(network.modules())
        self._flops: dict[Path, int] = {}
        self._open: list[nn.Module] = []
        self._known: dict[object, tuple[int, object]] = {}

    def work(self) -> dict[Path, int]:
        """Multiply-adds by the path to the module that does them; paths without are left out."""
        return {path: flops // 2 for path, flops in self._flops.items()}

    def __enter__(self) -> Self:
        self._handles = [
            handle
            for module in self._modules
            for handle in (module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave))
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = _key(func, args, kwargs)
        if key is not None and key in self._known:
            flops, form = self._known[key]
            output = _blank(form)
        else:
            with FlopCounterMode(display=False) as counter:
                output = func(*args, **kwargs)
            flops = int(counter.get_total_flops())
            if key is not None:
                with suppress(TypeError):
                    self._known[key] = flops, _form(output)
        if flops:
            path = tuple(self._open)
            self._flops[path] = self._flops.get(path, 0) + flops
        return output

    def _enter(self, module: nn.Module, inputs: object) -> None:
        del inputs
        self._open.append(module)

    def _leave(self, module: nn.Module, inputs: object, outputs: object) -> None:
        del module, inputs, outputs
        self._open.pop()


class _Blank(NamedTuple):
    """What is known of a tensor on the meta device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Plain(NamedTuple):
    """A value that is no tensor; 1, 1.0 and True are equal otherwise."""

    kind: type
    value: Any


def _key(func: Any, args: Any, kwargs: Any) -> object | None:
    """Equal for calls that give equal outputs; None where there is no such thing."""
    schema = func._schema
    if any(part.alias_info is not None for part in (*schema.arguments, *schema.returns)):
        return None
    try:
        key = func, _form(args), _form(tuple(kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _form(value: object) -> object:
    """A value with its tensors as blanks. Raises TypeError for a tensor that is not on the meta device."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError
        return _Blank(value.shape, value.stride(), value.dtype)
    return tuple(map(_form, value)) if isinstance(value, (tuple, list)) else _Plain(type(value), value)


def _blank(form: Any) -> object:
    """What a form was made of, with new tensors; lists have become tuples."""
    if isinstance(form, _Blank):
        return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
    return form.value if isinstance(form, _Plain) else tuple(map(_blank, form))
