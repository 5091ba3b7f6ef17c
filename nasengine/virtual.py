"""Passes of a network at other tensors than its own.

What `torch.func.functional_call` does, but that looks up every name in every call, which takes a tenth of the time of a
pass through a supernet of thousands of small modules: here the places of tensors are found once a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Places = dict[str, list[tuple[dict[str, Any], str]]]
"""By the name of a parameter or buffer where modules hold it; where it is tied several do."""

_known: WeakKeyDictionary[nn.Module, Places] = WeakKeyDictionary()


def call_at(network: nn.Module, tensors: Mapping[str, Tensor], arguments: Sequence[object]) -> Any:
    """`network(*arguments)` with tensors in place of its parameters and buffers of these names."""
    places = _places(network)
    own = [(holder, key, holder[key]) for name in tensors for holder, key in places[name]]
    try:
        for name, tensor in tensors.items():
            for holder, key in places[name]:
                holder[key] = tensor
        return network(*arguments)
    finally:
        for holder, key, tensor in own:
            holder[key] = tensor


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """Its parameters by name, in the order of its modules."""
    found = {name: holders[0][0][holders[0][1]] for name, holders in _places(network).items()}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, nn.Parameter)}


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    """Its buffers by name."""
    found = {name: holders[0][0][holders[0][1]] for name, holders in _places(network).items()}
    return {name: tensor for name, tensor in found.items() if not isinstance(tensor, nn.Parameter)}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, those of numbers all at once."""
    numbers = [name for name, tensor in tensors.items() if tensor.dtype in (torch.float32, torch.float64, torch.int64)]
    copies = torch._foreach_mul([tensors[name] for name in numbers], 1) if numbers else ()
    made = dict(zip(numbers, copies, strict=True))
    return {name: made[name] if name in made else tensor.clone() for name, tensor in tensors.items()}


def _places(network: nn.Module) -> Places:
    if network not in _known:
        names: dict[Tensor, str] = {}
        places: Places = {}
        for prefix, module in network.named_modules():
            for holder in (module._parameters, module._buffers):
                for key, tensor in holder.items():
                    if tensor is not None:
                        name = names.setdefault(tensor, f"{prefix}.{key}" if prefix else key)
                        places.setdefault(name, []).append((holder, key))
        _known[network] = places
    return _known[network]
