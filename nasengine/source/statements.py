"""The lines of a forward: the calls of a body as readable Python."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nasengine.source.calls import Body, Piece, Ref

_INLINE: Final = 84  # longest expression that has others inside
_TAKEN: Final = frozenset({"self", "torch", "nn", "F", "Any", "Tensor", *dir(builtins), *keyword.kwlist})


def statements(body: Body) -> list[str]:
    """The lines of the function that does what a body does.

    What is used once stands inside the expression that uses it, unless that becomes long.
    """
    return _Lines(body, _uses(body)).all()


def unused(name: str, taken: set[str] | frozenset[str]) -> str:
    """The name, or with a number behind it the first one that is not taken."""
    return name if name not in taken else next(n for n in _numbered(name) if n not in taken)


def _numbered(name: str) -> Iterator[str]:
    number = 2
    while True:
        yield f"{name}{number}"
        number += 1


def _uses(body: Body) -> list[int]:
    """How often what each call gives is used by calls that count: 0 for those that can be left out."""
    uses = [0] * len(body.calls)
    for ref in _refs(body.returned):
        uses[ref.call] += 1
    for place in reversed(range(len(uses))):
        if uses[place] or body.calls[place].effect:
            for ref in _refs(body.calls[place].pieces):
                uses[ref.call] += 1
    return uses


@dataclass
class _Lines:
    """A body that is written call by call.

    Calls without effect can wait until they are used; one with an effect comes after all that was called before it.
    """

    body: Body
    uses: list[int]
    lines: list[str] = field(default_factory=list)
    waiting: dict[int, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def all(self) -> list[str]:
        for place, call in enumerate(self.body.calls):
            if not self.uses[place] and not call.effect:
                continue
            if call.effect:
                self._write_waiting(list(self.waiting))
            text = self._text(call.pieces)
            if self.uses[place] == 1 and not call.effect:
                self.waiting[place] = text
            else:
                self._write(place, text)
        result = self._text(self.body.returned)
        return [*self.lines, f"return {result}"]

    def _text(self, pieces: Sequence[Piece]) -> str:
        inside = [ref.call for ref in _refs(pieces) if ref.call in self.waiting]
        size = sum(len(self.waiting[call]) for call in inside) + sum(len(p) for p in pieces if isinstance(p, str))
        if inside and size > _INLINE:
            self._write_waiting(sorted(inside))
        return "".join(piece if isinstance(piece, str) else self._ref(piece) for piece in pieces)

    def _ref(self, ref: Ref) -> str:
        text = self.waiting.pop(ref.call, None)
        if text is None:
            return self.names[ref.call] + ref.part
        operator = self.body.calls[ref.call].operator
        alike = operator == ref.beside and operator in ("+", "*") and not ref.part
        loose = operator and (ref.beside or ref.part) and not alike
        return f"({text}){ref.part}" if loose else text + ref.part

    def _write_waiting(self, places: Sequence[int]) -> None:
        for place in places:
            self._write(place, self.waiting.pop(place))

    def _write(self, place: int, text: str) -> None:
        if not self.uses[place]:
            self.lines.append(text)
            return
        hint = re.sub(r"\W+", "_", self.body.calls[place].hint).strip("_")
        hint = hint if hint.isidentifier() else f"x{hint}"
        taken = {*self.names.values(), *(name for name, _ in self.body.arguments), *_TAKEN}
        self.names[place] = unused(hint, taken)
        self.lines.append(f"{self.names[place]} = {text}")


def _refs(pieces: Sequence[Piece]) -> list[Ref]:
    return [piece for piece in pieces if isinstance(piece, Ref)]
