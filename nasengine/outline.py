"""What the derived networks of a space run and hold, without building them: one network with choices is walked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture
from nasengine.live import LiveBytes, made, weight_bytes
from nasengine.space import Space
from nasengine.supernet import Decision, MixedOp, Supernet
from nasengine.task import Shapes

_OF_TORCH: Final = {*vars(nn.Module()), "forward"} - {"training"}
_PLAIN: Final = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout)


class Blank(NamedTuple):
    """What is known of a tensor on the meta device; `place` numbers the storages of a call in order."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    place: int


class Piece(NamedTuple):
    """What a network runs as a whole: a module without children that computes, or an operation between modules.

    Attributes:
        name: of the module with its settings, or of the operation.
        target: a module on the meta device, or what computes.
        args, kwargs: its inputs, tensors as blanks.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Sketch(NamedTuple):
    """What a derived network does for a batch.

    Attributes:
        pieces: how often each piece runs, by its text.
        memory: bytes at the peak: weights, buffers, and the tensors that are held at a time.
    """

    pieces: Mapping[str, int]
    memory: int


class _Known(NamedTuple):
    """What a call does: the bytes it takes at its peak beyond those before it, what it runs, what it gives."""

    most: int
    pieces: Counter[str]
    output: Any


class Outline(LiveBytes):  # type: ignore[no-untyped-call]
    """Walks the derived networks of a space on the meta device.

    Calls are alike where the module, the shapes it gets and the options inside it are; what one call did stands for the
    others, so that a walk takes milliseconds. Layers with sizes run as the plain layers that stand for them in a
    derived network: what is counted is what `cost.memory` counts of the network that is built.

    Args:
        space: in its final form, whose `blueprint` is walked if no network is given.
        shapes: of the inputs.
        batch_size: inputs a batch.
        network: a network without choices, the only one to walk; it is not usable afterwards.

    Attributes:
        pieces: all that was met, by text.
    """

    def __init__(self, space: Space, shapes: Shapes, batch_size: int = 1, network: nn.Module | None = None) -> None:
        super().__init__()
        self.pieces: dict[str, Piece] = {}
        self._space, self._shapes, self._inputs = space, shapes, shapes.zeros(batch_size).to("meta")
        with torch.device("meta"):
            held = space.blueprint(shapes) if network is None else network
        self._supernet = Supernet(space, held.requires_grad_(False), lambda outputs, _: outputs.sum(), False)
        self._architecture = Architecture({})
        self._signatures: dict[nn.Module, int] = {}
        self._labels: dict[nn.Module, tuple[str, ...]] = {}
        self._numbers: dict[object, int] = {}
        self._known: dict[object, _Known] = {}
        self._stands: dict[object, nn.Module] = {}
        self._weights: dict[object, int] = {}
        self._found: Counter[str] = Counter()
        self._paused = self._inside = self._computes = False
        self._tied = _has_ties(held)
        self._wrap(held)

    def __deepcopy__(self, memo: object) -> Outline:
        return self

    def __call__(self, architecture: Architecture) -> Sketch:
        """What the derived network of an architecture does."""
        self._architecture, self._found = architecture, Counter()
        self.now = self.most = 0
        self._held.clear()
        with self, torch.no_grad(), torch.device("meta"):
            self._paused = True
            inputs = torch.empty_like(self._inputs)
            self.hold(inputs)
            self._paused = False
            self._supernet(inputs, self._supernet.hard(architecture))
            self._paused = True
            weights = self._weight_bytes()
        return Sketch(dict(self._found), self.most + weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        self._computes = True
        blanks = _Blanks()
        try:
            forms, named = blanks.of(args), {name: blanks.of(value) for name, value in kwargs.items()}
        except TypeError:
            return super().__torch_dispatch__(func, types, args, kwargs)
        key = func, forms, tuple(named.items()), tuple(blanks.kinds)
        if key in self._known:
            return self._repeated(self._known[key], blanks)
        before, found, self._found = self.now, self._found, Counter()
        output = super().__torch_dispatch__(func, types, args, kwargs)
        fresh = made(func, output)
        if fresh and blanks.tensors and not self._inside:
            self._note(Piece(str(func), func, forms, named), f"{func} {forms} {named}")
        if len(fresh) == (len(output) if isinstance(output, (tuple, list)) else 1):  # views are made again
            self._known[key] = _Known(self.now - before, self._found, blanks.of(output))
        found.update(self._found)
        self._found = found
        return output

    def _note(self, piece: Piece, text: str) -> None:
        self.pieces.setdefault(text, piece)
        self._found[text] += 1

    def _wrap(self, module: nn.Module) -> None:
        if "forward" not in vars(module):
            vars(module).update(forward=partial(self._call, module, module.forward), training=False)
            for child in module.children():
                self._wrap(child)

    def _call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._paused:
            return forward(*args, **kwargs)
        blanks = _Blanks()
        try:
            forms = blanks.of(args), tuple((name, blanks.of(value)) for name, value in kwargs.items())
        except TypeError:  # an input of which nothing is known: such a call stands for itself
            return self._run(module, forward, args, kwargs, ((), ()))
        key = self._key(module), forms, tuple(blanks.kinds)
        known = self._known.get(key)
        if known is not None:
            return self._repeated(known, blanks)
        before, self.most = self.most, self.now
        start, found, self._found = self.now, self._found, Counter()
        output = self._run(module, forward, args, kwargs, forms)
        inputs = len(blanks.tensors)
        with suppress(TypeError):
            form = blanks.of(output)
            if all(map(self.holds, blanks.tensors[inputs:])):  # else it gives a weight
                self._known[key] = _Known(self.most - start, self._found, form)
        found.update(self._found)
        self._found, self.most = found, max(before, self.most)
        return output

    def _run(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any, forms: Any) -> Any:
        if isinstance(module, Decision):
            return self._fixed(module)(*args, **kwargs)
        if self._inside or next(module.children(), None) is not None:
            return forward(*args, **kwargs)
        self._inside, self._computes = True, False
        try:
            output = forward(*args, **kwargs)
        finally:
            self._inside = False
        if self._computes:
            name = " ".join(repr(module).split())
            text = f"{type(module).__module__} {name} {_settings(module)} {_weights(module)} {forms}"
            self._note(Piece(name, module, forms[0], dict(forms[1])), text)
        return output

    def _fixed(self, module: Decision) -> nn.Module:
        """The module that stands for a decision in the derived network."""
        key = self._key(module)
        if key not in self._stands or isinstance(module, MixedOp):
            paused, self._paused = self._paused, True
            try:
                self._stands[key] = module.fixed(self._architecture, inherit=False)
                self._wrap(self._stands[key])
            finally:
                self._paused = paused
        return self._stands[key]

    def _repeated(self, known: _Known, blanks: _Blanks) -> Any:
        self.most = max(self.most, self.now + known.most)
        self._found.update(known.pieces)
        self._paused = True
        try:
            return self._filled(known.output, blanks.tensors, {})
        finally:
            self._paused = False

    def _filled(self, form: Any, inputs: list[Tensor], new: dict[int, Tensor]) -> Any:
        """An output by its form: one of the inputs, a view of one, or new."""
        if isinstance(form, Blank):
            if form.place < len(inputs):
                return _view(inputs[form.place], form)
            if form.place not in new:
                new[form.place] = allocated(form)
                self.hold(new[form.place])
            return _view(new[form.place], form)
        if isinstance(form, tuple):
            return (list if isinstance(form, _List) else tuple)(self._filled(part, inputs, new) for part in form)
        return form

    def _key(self, module: nn.Module) -> tuple[int, tuple[str, ...]]:
        """Equal for modules that do the same under the present architecture."""
        if module not in self._labels:
            choices = [c.label for part in module.modules() if isinstance(part, Decision) for c in part.choices]
            self._labels[module] = tuple(dict.fromkeys(choices))
        return self._signature(module), tuple(self._architecture[label] for label in self._labels[module])

    def _signature(self, module: nn.Module) -> int:
        """A number that is equal for modules of the same type, settings, shapes and children."""
        if module not in self._signatures:
            parts = [(name, self._signature(child)) for name, child in module._modules.items() if child is not None]
            what = (type(module), _settings(module), _weights(module), tuple(parts))
            self._signatures[module] = self._numbers.setdefault(what, len(self._numbers))
        return self._signatures[module]

    def _weight_bytes(self) -> int:
        """The bytes of weights and buffers of the present derived network."""
        network = self._supernet.network
        if self._tied:
            derived = self._space.build(self._architecture, self._shapes) if self._supernet.choices else network
            return weight_bytes(derived)
        head = getattr(network, "auxiliary", None)
        return self._bytes(network) - (self._bytes(head) if isinstance(head, nn.Module) else 0)

    def _bytes(self, module: nn.Module) -> int:
        key = self._key(module)
        if key not in self._weights:
            if isinstance(module, Decision):
                self._weights[key] = self._bytes(self._fixed(module))
            else:
                own = (*module._parameters.values(), *module._buffers.values())
                size = sum(tensor.numel() * tensor.element_size() for tensor in own if tensor is not None)
                children = (child for child in module._modules.values() if child is not None)
                self._weights[key] = size + sum(map(self._bytes, children))
        return self._weights[key]


class Sketches:
    """The sketches of the derived networks of a space as it is set, each made once.

    A space in its final form is walked; in another form, or without a supernet, the networks are built on meta.

    Attributes:
        pieces: all that was met, by text.
    """

    def __init__(self, space: Space, shapes: Shapes, batch_size: int = 1) -> None:
        self.space, self.shapes, self.batch_size = space, shapes, batch_size
        self.pieces: dict[str, Piece] = {}
        self._known: dict[Architecture, Sketch] = {}

    @cached_property
    def _outline(self) -> Outline | None:
        return Outline(self.space, self.shapes, self.batch_size) if has_blueprint(self.space) else None

    def __call__(self, architecture: Architecture) -> Sketch:
        """What the derived network of an architecture does."""
        if architecture not in self._known:
            self._known[architecture] = self._made(architecture)
        return self._known[architecture]

    def _made(self, architecture: Architecture) -> Sketch:
        outline = self._outline
        if outline is not None:
            sketch = outline(architecture)
        else:
            with torch.device("meta"):
                network = self.space.build(architecture, self.shapes)
            outline = Outline(self.space, self.shapes, self.batch_size, network)
            sketch = outline(Architecture({}))
        self.pieces.update({text: outline.pieces[text] for text in sketch.pieces if text not in self.pieces})
        return sketch


def has_blueprint(space: Space) -> bool:
    """Whether a space has one network for all that are derived from it as it is set."""
    return space.searchable


class _List(tuple[Any, ...]):
    """A list that can be compared and kept as a key."""


class _Blanks:
    """Values with their tensors as blanks.

    Attributes:
        tensors: the first tensor of every storage that was met.
        kinds: the types of what is no tensor: 1, 1.0 and True are equal otherwise.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.kinds: list[type] = []
        self._places: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """The value with blanks. Raises TypeError where something in it is neither a tensor nor plain."""
        if isinstance(value, Tensor):
            pointer = value.untyped_storage()._cdata
            place = self._places.setdefault(pointer, len(self.tensors))
            if place == len(self.tensors):
                self.tensors.append(value)
            return Blank(tuple(value.shape), value.stride(), value.dtype, int(value.storage_offset()), place)
        if type(value) in (tuple, list):
            self.kinds.append(type(value))
            return (tuple if type(value) is tuple else _List)(map(self.of, value))
        if not isinstance(value, _PLAIN):
            raise TypeError
        self.kinds.append(type(value))
        return value


def allocated(form: Blank, device: torch.device | str = "meta") -> Tensor:
    """A tensor with the storage of a blank."""
    if form.offset == 0:
        return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=device)
    reach = form.offset + 1 + sum((size - 1) * step for size, step in zip(form.shape, form.stride, strict=True))
    return torch.empty(0 if 0 in form.shape else reach, dtype=form.dtype, device=device)


def _view(tensor: Tensor, form: Blank) -> Tensor:
    same = tensor.shape == form.shape and tensor.stride() == form.stride and tensor.storage_offset() == form.offset
    if same and tensor.dtype == form.dtype:
        return tensor
    same_type = tensor if tensor.dtype == form.dtype else tensor.view(form.dtype)
    return same_type.as_strided(form.shape, form.stride, form.offset)


def _settings(module: nn.Module) -> tuple[object, ...]:
    """What a module holds besides weights and children: plain values as they are, others only equal to themselves."""
    return tuple((name, _plain(value)) for name, value in vars(module).items() if name not in _OF_TORCH)


def _plain(value: Any) -> object:
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *map(_plain, value)
    if isinstance(value, Mapping):
        return "mapping", *((_plain(key), _plain(part)) for key, part in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value).__name__, *((field.name, _plain(getattr(value, field.name))) for field in fields)
    return type(value).__name__, id(value)


def _weights(module: nn.Module) -> tuple[object, ...]:
    tensors = (*module._parameters.items(), *module._buffers.items())
    return tuple((name, tuple(t.shape), str(t.dtype)) for name, t in tensors if t is not None)


def _has_ties(network: nn.Module) -> bool:
    """Whether weights are in several places, so that their bytes are not a sum over modules."""
    places = Counter(
        id(tensor)
        for module in network.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )
    owners = Counter(
        id(module)
        for parent in network.modules()
        for module in parent._modules.values()
        if module is not None and next(module.parameters(), None) is not None
    )
    return max((*places.values(), *owners.values()), default=0) > 1
