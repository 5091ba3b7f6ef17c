"""How much every module of a network computes by itself, each time it is called from another place."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Path = tuple[nn.Module, ...]
"""Modules, each called by the one before it."""


class OwnWork(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-adds that every module does outside its children, on any device.

    On the meta device what an operation costs and gives depends on shapes alone: each is computed once per shapes, as
    torch's kernels for it are slow and the cells of a network are much alike.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._within = set(network.modules())
        self._flops: dict[Path, int] = {}
        self._open: list[nn.Module] = []
        self._known: dict[object, tuple[int, object]] = {}

    def work(self) -> dict[Path, int]:
        """Multiply-adds by the path to the module that does them; paths without are left out."""
        return {path: flops // 2 for path, flops in self._flops.items()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch's compiler, for a second or two

    def __enter__(self) -> Self:
        # for all modules at once: thousands of hooks of single modules take longer than the pass
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
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
            output = func(*args, **kwargs)
            count = flop_registry.get(func.overloadpacket)
            flops = int(count(*args, **kwargs, out_val=output)) if count is not None else 0
            if key is not None:
                with suppress(TypeError):
                    self._known[key] = flops, _form(output)
        if flops:
            path = tuple(self._open)
            self._flops[path] = self._flops.get(path, 0) + flops
        return output

    def _enter(self, module: nn.Module, inputs: object) -> None:
        del inputs
        if module in self._within:
            self._open.append(module)

    def _leave(self, module: nn.Module, inputs: object, outputs: object) -> None:
        del inputs, outputs
        if module in self._within:
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
