"""The frame of the file model.py that an export writes; names between @ are filled in by `nasengine.source`."""

from __future__ import annotations

from typing import Final

NUMBERS: Final = {
    "CONSTANTS": "MEAN = @MEAN@\nSTD = @STD@",
    "FUNCTION": '''def preprocess(inputs: Tensor) -> Tensor:
    """What the network takes of raw inputs (batch, *INPUT_SHAPE).

    @PREPROCESSING@
    """
    shape = (1, -1, *[1] * (len(INPUT_SHAPE) - 1))
    mean, std = (torch.tensor(values, device=inputs.device).view(shape) for values in (MEAN, STD))
    return (inputs.to(torch.float32) - mean) / std''',
}
"""The parts about inputs that are images or other numbers."""

TOKENS: Final = {
    "CONSTANTS": "VOCABULARY = @VOCABULARY@",
    "FUNCTION": '''def preprocess(inputs: Tensor) -> Tensor:
    """What the network takes of raw inputs (batch, *INPUT_SHAPE).

    @PREPROCESSING@
    """
    return inputs.to(torch.int64)''',
}
"""The parts about inputs that are tokens."""

STANDARDISED: Final = {
    "TARGETS": "\nTARGET_MEAN = @TARGET_MEAN@\nTARGET_STD = @TARGET_STD@",
    "UNDO": '''def postprocess(outputs: Tensor) -> Tensor:
    """The targets in their own units, (batch, targets), of outputs of the network, which are standardised."""
    mean, std = (torch.tensor(values, device=outputs.device) for values in (TARGET_MEAN, TARGET_STD))
    return outputs * std + mean


''',
}
"""The parts about targets that were standardised."""

AS_THEY_ARE: Final = {"TARGETS": "", "UNDO": ""}
"""The same of other targets and of classes."""

TEMPLATE: Final = '''"""@ABOUT@

    from model import CLASSES, load, preprocess

    network = load()  # the weights in network.safetensors beside this file
    outputs = network(preprocess(inputs))  # @OUTPUTS@

It is the network as it is evaluated: without an auxiliary head, without dropped paths, and for inputs of this shape in
batches of any size. In training mode batch norm and dropout train as torch's do, and the rest is as here.
"""

from __future__ import annotations

import json
import sys
@COLLECTIONS@from pathlib import Path
@TYPING@
import torch
@FUNCTIONAL@from torch import Tensor, nn

ARCHITECTURE = @ARCHITECTURE@
CLASSES = @CLASSES@
INPUT_SHAPE = @INPUT_SHAPE@
@CONSTANTS@@TARGETS@
WEIGHTS = Path(__file__).with_name("network.safetensors")


@MODULES@


@FUNCTION@


@UNDO@def load(weights: str | Path = WEIGHTS) -> @NETWORK@:
    """The network with its weights, on the CPU, in evaluation mode."""
    network, tensors = @NETWORK@(), read_safetensors(weights)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network.eval()


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file: a JSON header after its length, then little-endian numbers."""
    if sys.byteorder != "little":
        raise RuntimeError("This reader needs a little-endian machine: load the file by the package safetensors.")
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    kinds |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
    kinds |= {"U8": torch.uint8, "BOOL": torch.bool}
    data = bytearray(Path(path).read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        kind, (first, last) = kinds[entry["dtype"]], entry["data_offsets"]
        flat = torch.frombuffer(data[begin + first : begin + last], dtype=kind) if last > first else torch.empty(0)
        tensors[name] = flat.to(kind).reshape(entry["shape"])
    return tensors


if __name__ == "__main__":
    network, inputs = load(), preprocess(@EXAMPLE@)
    with torch.no_grad():
        outputs = network(inputs)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{type(network).__name__}: {parameters:,} parameters, {tuple(inputs.shape)} -> {tuple(outputs.shape)}")
'''
