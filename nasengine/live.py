"""How many bytes of tensors a network holds at a time, counted as its operations make and drop them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations inside it make, until Python drops them; exact on any device, also meta.

    Views and what is done in place add nothing. What a kernel allocates and frees by itself is not seen.

    Attributes:
        now: bytes that are held.
        most: the largest that `now` was.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most = 0, 0
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch's compiler, for a second or two

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # it changes nothing: what asks for other modes may do as it does without one

    def hold(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return

        def drop(reference: object) -> None:
            del reference
            self.now -= self._held.pop(key)[1]

        size = storage.nbytes()
        self._held[key] = weakref.ref(storage, drop), size
        self.now += size
        self.most = max(self.most, self.now)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the storage of a tensor is counted now."""
        return tensor.untyped_storage()._cdata in self._held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in made(func, output):
            self.hold(tensor)
        return output


def made(func: Any, output: object) -> list[Tensor]:
    """The tensors with storages of their own that an operation gave."""
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    if func is torch.ops.aten.native_batch_norm.default:  # evaluation makes no statistics, but the meta device does
        return [outputs[0]]
    returns = func._schema.returns
    if not returns:  # in place, on lists
        return []
    if len(returns) != len(outputs):  # one list of tensors
        returns = [returns[0]] * len(outputs)
    return [
        tensor
        for tensor, declared in zip(outputs, returns, strict=True)
        if isinstance(tensor, Tensor) and declared.alias_info is None
    ]


def weight_bytes(network: nn.Module) -> int:
    """Bytes of the weights and buffers of a network, each once, without an auxiliary head."""
    head = getattr(network, "auxiliary", None)
    without = set(head.modules()) if isinstance(head, nn.Module) else set()
    tensors = {
        id(tensor): tensor.numel() * tensor.element_size()
        for module in network.modules()
        if module not in without
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }
    return sum(tensors.values())
