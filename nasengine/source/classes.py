"""The classes of a network's own modules as Python source; torch's own modules are constructors in them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from nasengine.errors import ExportError
from nasengine.source.calls import documented, is_sequence, quoted
from nasengine.source.frames import MOST_NUMBERS
from nasengine.source.recording import Recording
from nasengine.source.statements import statements, unused

WIDTH: Final = 110
_TAKEN: Final = {
    *("annotations", "json", "sys", "Path", "Any", "torch", "F", "Tensor", "nn", "OrderedDict"),
    *("ARCHITECTURE", "CLASSES", "INPUT_SHAPE", "VOCABULARY", "MEAN", "STD", "WEIGHTS"),
    *("TARGET_MEAN", "TARGET_STD", "postprocess"),
    *("preprocess", "load", "read_safetensors"),
}


@dataclass(frozen=True)
class Nested:
    """A constructor with parts, on one line where they fit."""

    head: str
    parts: tuple[tuple[str, str | Nested], ...]
    tail: str

    def flat(self) -> str:
        inside = [before + (part if isinstance(part, str) else part.flat()) for before, part in self.parts]
        return f"{self.head}{', '.join(inside)}{self.tail}"

    def lines(self, indent: int, before: str, after: str) -> list[str]:
        space, flat = " " * indent, self.flat()
        if indent + len(before) + len(flat) + len(after) <= WIDTH:
            return [f"{space}{before}{flat}{after}"]
        found = [f"{space}{before}{self.head}"]
        for label, part in self.parts:
            found += [f"{space}    {label}{part},"] if isinstance(part, str) else part.lines(indent + 4, label, ",")
        return [*found, f"{space}{self.tail}{after}"]


class Classes:
    """The classes of a network's own modules; modules with one text have one class."""

    def __init__(self, network: nn.Module, recording: Recording) -> None:
        self.network, self.recording = network, recording
        self.paths: dict[str, list[str]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._texts: dict[str, tuple[str, str]] = {}
        self._needed = self._all_needed()

    @property
    def texts(self) -> list[str]:
        """In the order in which Python must read them."""
        return [f"{head}\n{_doc(self.paths[name])}\n{body}" for name, (head, body) in self._texts.items()]

    def write(self, module: nn.Module, path: str) -> str:
        """Writes the class of a module at a path, after those of its children; gives the name of the class."""
        kind = type(module).__name__.lstrip("_") or "Network"
        if is_sequence(module):
            kind = "Network" if kind == "Sequential" else kind
            made = self._sequence(module, path)
            base, body = "nn.Sequential", ["    def __init__(self) -> None:"]
            body += Nested(made.head.replace(base, "super().__init__"), made.parts, made.tail).lines(8, "", "")
        else:
            base, body = "nn.Module", self._body(module, path)
        text = "\n".join(body)
        name = self._names.get((kind, text))
        if name is None:
            name = self._names[kind, text] = unused(kind, {*self._texts, *_TAKEN})
            self._texts[name] = (f"class {name}({base}):", text)
        self.paths.setdefault(name, []).append(path)
        return name

    def _all_needed(self) -> set[nn.Module]:
        """The modules that run, whose weights are read, or inside which there are such modules."""
        return {m for m in self.recording.network.modules() if not self.recording.used.isdisjoint(m.modules())}

    def _body(self, module: nn.Module, path: str) -> list[str]:
        lines: list[str] = []
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in self.recording.weights:
                lines.append(f"        self.{name} = {_parameter(parameter)}")
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) in self.recording.weights:
                lines.append(f"        {self._buffer(module, name, _join(path, name))}")
        for name, child in module._modules.items():
            if child is not None and child in self._needed:
                made, target = self._made(child, _join(path, name)), f"self.{name} = "
                lines += [f"        {target}{made}"] if isinstance(made, str) else made.lines(8, target, "")
        begin = ["    def __init__(self) -> None:", "        super().__init__()", *lines] if lines else []
        return [*begin, *([""] if begin else []), *self._forward(module)]

    def _forward(self, module: nn.Module) -> list[str]:
        body = self.recording.bodies.get(module)
        if body is None:
            return []
        arguments = "".join(f", {name}: {kind}" for name, kind in body.arguments)
        lines = [f"        {line}" for line in statements(body)]
        return [f"    def forward(self{arguments}) -> {body.returns}:", *lines]

    def _made(self, module: nn.Module, path: str) -> str | Nested:
        """The expression that makes a child."""
        if module in self.recording.constructors:
            return self.recording.constructors[module]
        body = self.recording.bodies.get(module)
        if module not in self._needed or (body is not None and body.is_identity):
            return "nn.Identity()"
        if is_sequence(module):
            return self._sequence(module, path)
        if isinstance(module, nn.ModuleList):
            return Nested("nn.ModuleList([", tuple(("", made) for _, _, made in self._children(module, path)), "])")
        if isinstance(module, nn.ModuleDict):
            kept = ((f"{quoted(name)}: ", made) for name, c, made in self._children(module, path) if c in self._needed)
            return Nested("nn.ModuleDict({", tuple(kept), "})")
        if isinstance(module, nn.ParameterList):
            return Nested("nn.ParameterList([", tuple(("", _parameter(p)) for p in module), "])")
        if isinstance(module, nn.ParameterDict):
            entries = tuple((f"{quoted(name)}: ", _parameter(p)) for name, p in module.items())
            return Nested("nn.ParameterDict({", entries, "})")
        return f"{self.write(module, path)}()"

    def _children(self, module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, str | Nested]]:
        for name, child in module._modules.items():
            if child is not None:
                yield name, child, self._made(child, _join(path, name))

    def _sequence(self, module: nn.Module, path: str) -> Nested:
        children = list(self._children(module, path))
        if [name for name, _, _ in children] == [str(place) for place in range(len(children))]:
            return Nested("nn.Sequential(", tuple(("", made) for _, _, made in children), ")")
        entries = tuple((f"{quoted(name)}: ", made) for name, _, made in children)
        return Nested("nn.Sequential(OrderedDict({", entries, "}))")

    def _buffer(self, module: nn.Module, name: str, path: str) -> str:
        buffer = self.network.get_buffer(path)
        if name not in module._non_persistent_buffers_set:
            return f'self.register_buffer("{name}", {_zeros(buffer)})'
        if buffer.numel() > MOST_NUMBERS:
            raise ExportError(
                f"A buffer without a place in the weights must have at most {MOST_NUMBERS} numbers to be written as "
                f"Python code, but {path} has {buffer.numel()}; leave py out of the formats "
                "(--format), or make it persistent."
            )
        values = f"torch.tensor({buffer.tolist()!r}, dtype={buffer.dtype})"
        return f'self.register_buffer("{name}", {values}, persistent=False)'


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _zeros(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({tuple(tensor.shape)!r}{dtype})"


def _parameter(parameter: Any) -> str:
    return f"nn.Parameter({_zeros(parameter)})"


def _doc(paths: list[str]) -> str:
    where = documented(", ".join(path or "the whole network" for path in paths))
    lines = textwrap.wrap(f'"""{where[:1].upper() + where[1:] if paths == [""] else where}."""', WIDTH - 4)
    return "\n".join(f"    {line}" for line in lines) + "\n"
