"""Mixed precision: convolutions and matrix products in bfloat16 on the way through a network, all else in float32.

Weights, optimisers, alphas, the softmax of alphas, running statistics and losses are float32 in both. bfloat16 has the
range of float32, so that no loss is scaled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from nasengine.errors import DeviceError

Precision = Literal["float32", "bfloat16"]


def at_precision(precision: Precision, network: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    """`network(inputs)`: a tensor (B, ...) or a tuple of such, always in the type that the loss has."""
    if precision == "float32":
        return network(inputs)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        outputs = network(inputs)
    return tuple(map(_wide, outputs)) if isinstance(outputs, tuple) else _wide(outputs)


def require_precision(precision: Precision, device: torch.device) -> None:
    """Raises DeviceError where a device has no such numbers."""
    if precision == "float32":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of some devices torch only says that it falls back
            torch.autocast(device.type, torch.bfloat16)
    except (RuntimeError, UserWarning):
        raise DeviceError(
            f"The device must compute in bfloat16 for --precision bfloat16, but {str(device)!r} does not; leave it "
            "out, or give another --device."
        ) from None


def _wide(outputs: Any) -> Any:
    return outputs.float() if isinstance(outputs, Tensor) and outputs.dtype == torch.bfloat16 else outputs
