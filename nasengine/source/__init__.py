"""A network as Python source that needs torch alone: plain modules with explicit layers and an ordinary forward.

Not by torch.fx: its proxies have no sizes, so that code which asks for them cannot be traced or is written out as
arithmetic, and its graphs are flat, where the modules of a network are the best names that there are.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

import numpy as np
from torch import nn

from nasengine.interface import Interface
from nasengine.source.calls import documented, quoted
from nasengine.source.classes import WIDTH, Classes
from nasengine.source.recording import record
from nasengine.source.template import AS_THEY_ARE, NUMBERS, STANDARDISED, TEMPLATE, TOKENS


def source(network: nn.Module, interface: Interface, about: str, architecture: str) -> str:
    """The text of a module that builds `network` in evaluation form, loads its weights and standardises its inputs.

    Args:
        network: with its weights.
        interface: what it takes and gives.
        about: a sentence for the head of the file.
        architecture: the text of the architecture.

    Raises:
        ExportError: the network does what cannot be written so.
    """
    classes = Classes(network, record(network, interface.shapes))
    root = classes.write(classes.recording.network, "")
    modules = "\n\n\n".join(classes.texts)
    values = {
        "ABOUT": "\n".join(textwrap.wrap(documented(about), WIDTH)),
        "OUTPUTS": f"(batch, {interface.outputs}): {_outputs(interface)}",
        "COLLECTIONS": "from collections import OrderedDict\n" if "OrderedDict(" in modules else "",
        "TYPING": "from typing import Any\n" if re.search(r"\bAny\b", modules) else "",
        "FUNCTIONAL": "import torch.nn.functional as F\n" if re.search(r"\bF\.", modules) else "",
        "ARCHITECTURE": _long_text(architecture),
        "CLASSES": _rows(map(quoted, interface.classes)),
        "INPUT_SHAPE": repr(interface.input),
        "MODULES": modules,
        "NETWORK": root,
        "EXAMPLE": _example(interface),
    }
    inputs = TOKENS if interface.vocabulary else NUMBERS
    inputs = {**inputs, **(STANDARDISED if interface.target_std else AS_THEY_ARE)}
    moments = {
        name.upper(): _rows(map(_float32, getattr(interface, name)))
        for name in ("mean", "std", "target_mean", "target_std")
    }
    raw = {"VOCABULARY": repr(interface.vocabulary), "PREPROCESSING": interface.preprocessing, **moments}
    parts = {name: _filled(text, raw) for name, text in inputs.items()}
    return _filled(TEMPLATE, values | parts)


def _filled(template: str, values: dict[str, str]) -> str:
    """The template with its @NAMES@ filled in, all at once: a value may contain what looks like one."""
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], template)


def _example(interface: Interface) -> str:
    if interface.vocabulary:
        return "torch.randint(VOCABULARY, (2, *INPUT_SHAPE))"
    if interface.dtype == "uint8":
        return "torch.randint(256, (2, *INPUT_SHAPE), dtype=torch.uint8)"
    return "torch.randn(2, *INPUT_SHAPE)"


def _outputs(interface: Interface) -> str:
    if not interface.regression:
        return "a score a class"
    return "a number a target" + (", standardised: see postprocess" if interface.target_std else "")


def _float32(value: float) -> str:
    """The shortest number that is the same in float32."""
    return repr(float(str(np.float32(value))))


def _rows(words: Iterable[str]) -> str:
    """A tuple, over several lines where it is long."""
    items = list(words)
    if not items:
        return "()"
    line = f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if len(line) < WIDTH - 10:
        return line
    return "(\n" + "\n".join(f"    {item}," for item in _packed(items)) + "\n)"


def _packed(items: list[str]) -> list[str]:
    lines = [items[0]]
    for item in items[1:]:
        if len(lines[-1]) + len(item) < WIDTH - 8:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    return lines


def _long_text(text: str) -> str:
    """A text literal, over several lines where it is long."""
    if len(text) <= WIDTH - 20:
        return quoted(text)
    parts = re.findall(rf".{{1,{WIDTH - 20}}}(?:\s|$)|.{{1,{WIDTH - 20}}}", text, re.DOTALL)
    return "(\n" + "\n".join(f"    {quoted(part)}" for part in parts) + "\n)"
