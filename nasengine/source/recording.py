"""What the modules of a network do, as calls: recorded while it runs on the meta device, where nothing is computed.

The author's Python runs as it is; every function of torch and every module that it calls is noted in the body of the
module that calls it. Sizes are numbers, so that what depends on them is decided; the batch has a size of its own, by
which it is told from all others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasengine.errors import ExportError, NasengineError, reason
from nasengine.source.calls import Body, Call, annotation, bound, is_default, is_sequence, path_text, tensors
from nasengine.source.constructors import constructor
from nasengine.source.frames import BATCH, Frame, FunctionCall
from nasengine.task import Shapes


@dataclass(frozen=True)
class Recording:
    """A network and what its modules do.

    Attributes:
        network: a copy on the meta device.
        constructors: how those of its modules are made that are torch's own.
        bodies: of the other modules that run.
        used: all modules that run, or whose weights are read.
        weights: ids of the parameters and buffers that are read outside torch's own modules.
    """

    network: nn.Module
    constructors: Mapping[nn.Module, str]
    bodies: Mapping[nn.Module, Body]
    used: frozenset[nn.Module]
    weights: frozenset[int]


def record(network: nn.Module, shapes: Shapes) -> Recording:
    """Records a network in evaluation mode. Raises ExportError where something cannot be written as torch code."""
    meta = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    recorder = _Recorder(meta)
    handles = []
    for module in meta.modules():
        handles += [
            module.register_forward_pre_hook(recorder.enter, with_kwargs=True),
            module.register_forward_hook(recorder.leave, with_kwargs=True),
        ]
    try:
        with torch.no_grad(), torch.device("meta"):
            inputs = shapes.zeros(BATCH)
            with recorder:
                meta(inputs)
    except NasengineError:
        raise
    except Exception as error:
        raise ExportError(
            "A network must run without knowing the values of its inputs to be written as Python code, but "
            f"{type(network).__name__} raised {reason(error)}; leave py out of the formats "
            "(--format), or mend its forward."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    used, weights = frozenset(recorder.used), frozenset(recorder.weights)
    return Recording(meta, recorder.constructors, recorder.bodies, used, weights)


class _Recorder(TorchFunctionMode):
    """Notes the calls of all modules that run."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        made = {module: constructor(module) for module in network.modules()}
        self.constructors = {module: text for module, text in made.items() if text is not None}
        self.bodies: dict[nn.Module, Body] = {}
        self.used: set[nn.Module] = set()
        self.weights: set[int] = set()
        self._frames: list[Frame] = []
        self._versions: list[dict[int, int]] = []
        self._inside: nn.Module | None = None  # one of torch's own modules, whose calls are not ours to write

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a module runs. A tensor that it gets twice is made two: they are two arguments."""
        if self._inside is not None:
            return args, kwargs
        frame, seen = Frame(module), set[int]()
        if module in self.constructors:
            self._inside = module
        elif not is_sequence(module):
            args = tuple(self._apart(value, seen) for value in args)
            kwargs = {name: self._apart(value, seen) for name, value in kwargs.items()}
        for name, value in bound(module, args, kwargs):
            if any(tensors(value)):
                frame.take(name, value)
        self._frames.append(frame)
        self._versions.append(_versions([args, kwargs]))
        return args, kwargs

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After a module ran. A tensor that it gives twice is made two."""
        if self._inside not in (None, module):
            return output
        frame, before = self._frames.pop(), self._versions.pop()
        leaf, self._inside = self._inside is module, None
        if not leaf:
            self._keep(frame, output)
        if not self._frames:
            self.used.add(module)
            return output
        effect = _versions([args, kwargs]) != before
        same = isinstance(output, Tensor) and id(output) in before and not effect
        if same and (isinstance(module, nn.Identity) or not (leaf or frame.calls)):
            return output
        self.used.add(module)
        if same or not leaf:  # what dropout gives is another tensor in training
            output = self._apart(output, {id(output)} if same else set())
        self._note(module, args, kwargs, output, effect)
        return output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if self._inside is not None or not self._frames:
            return func(*args, **given)
        before = _versions([args, given])
        result = func(*_on_meta(args), **_on_meta(given))
        if func.__name__ == "__setitem__" or any(tensors(result)):
            effect = _versions([args, given]) != before
            self._frames[-1].note(FunctionCall(self._frames[-1], func, args, given).text(effect), result)
        return result

    def _note(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, effect: bool
    ) -> None:
        """The call of a module by the one around it."""
        frame = self._frames[-1]
        path = next((path for path, child in frame.module.named_modules() if child is module), None)
        if path is None:
            raise ExportError(
                f"A module must call its own children to be written as Python code, but {type(frame.module).__name__} "
                f"calls a {type(module).__name__} from elsewhere; leave py out of the formats "
                "(--format), or make it a child."
            )
        given = [value for _, value in bound(module, args, kwargs) if any(tensors(value))]
        named = {name: value for name, value in kwargs.items() if not is_default(type(module).forward, name, value)}
        words = frame.words(args, named) if module in self.constructors else frame.words(given, {})
        frame.note(Call((path_text(frame.module, path), "(", *words, ")"), "", path, effect), output)

    def _keep(self, frame: Frame, output: object) -> None:
        """What a module did, which must be the same each time."""
        returned = tuple(frame.pieces(output))
        self.used.update(module for module, _ in frame.read)
        self.weights.update(id(tensor) for _, tensor in frame.read)
        body = Body(tuple(frame.arguments), tuple(frame.calls), returned, annotation(output))
        if is_sequence(frame.module):
            return
        if self.bodies.setdefault(frame.module, body) != body:
            raise ExportError(
                "A module that is called more than once must do the same each time to be written as Python code, but "
                f"{type(frame.module).__name__} does not; leave py out of the formats "
                "(--format), or make it two modules."
            )

    def _apart(self, value: Any, seen: set[int]) -> Any:
        """The value with another object for each tensor that was seen before."""
        if isinstance(value, Tensor):
            if id(value) in seen:
                with torch._C.DisableTorchFunction():
                    other = value.view_as(value)
                if self._frames:
                    self._frames[-1].alias(value, other)
                return other
            seen.add(id(value))
        elif type(value) in (tuple, list):
            return type(value)(self._apart(item, seen) for item in value)
        return value


def _versions(values: object) -> dict[int, int]:
    """A count for every tensor inside that rises when it is changed in place."""
    return {id(tensor): tensor._version for _, tensor in tensors(values)}


def _on_meta(value: Any) -> Any:
    """Constants are moved to where everything else is."""
    if isinstance(value, Tensor):
        return value if value.device.type == "meta" else value.to("meta")
    if type(value) in (tuple, list):
        return type(value)(_on_meta(item) for item in value)
    if type(value) is dict:
        return {key: _on_meta(item) for key, item in value.items()}
    return value
