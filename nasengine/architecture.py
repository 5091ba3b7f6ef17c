"""Choices, and the architecture that takes one option of each: plain values, no torch modules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from nasengine.errors import ArchitectureError

_WORD = re.compile(r"[^\s=]+")

Place = Mapping[str, Collection[str]]
"""Where in a network: per choice around it the options under which it is kept; empty where it always is."""


@dataclass(frozen=True)
class Choice:
    """A named decision.

    Attributes:
        label: its name; modules with the same label share the decision.
        options: names of the options, without white space or "=".
        ordinal: whether the options are ordered (how many channels) rather than categorical (which operation).
        places: where its modules are; choices that differ in nothing else are equal.
    """

    label: str
    options: tuple[str, ...]
    ordinal: bool = False
    places: tuple[Place, ...] = field(default=({},), compare=False, repr=False)

    def __post_init__(self) -> None:
        for word in (self.label, *self.options):
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise ArchitectureError(
                    f"Labels and options must be texts without space or '=', but choice {self.label!r} has {word!r}."
                )
        if not self.options or len(set(self.options)) != len(self.options):
            raise ArchitectureError(
                f"Choice {self.label!r} must have one or more different options, but got {self.options}."
            )

    def has_effect(self, architecture: Mapping[str, str]) -> bool:
        """Whether an architecture keeps one of its places."""
        return any(all(architecture[label] in kept for label, kept in place.items()) for place in self.places)


class Architecture(Mapping[str, str]):
    """One option per choice: an immutable, hashable mapping label -> option whose text form parses back.

    >>> a = Architecture({"kernel": "3", "operation": "skip"})
    >>> str(a)
    'kernel=3 operation=skip'
    >>> Architecture.parse(str(a)) == a
    True
    """

    __slots__ = ("_options",)

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = dict(options)

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Reads `label=option` words separated by any white space. Raises ArchitectureError."""
        options: dict[str, str] = {}
        for word in text.split():
            label, equals, option = word.partition("=")
            if not (label and equals and option) or "=" in option:
                raise ArchitectureError(f"An architecture must be words of the form label=option, but got {word!r}.")
            if label in options:
                raise ArchitectureError(f"An architecture must name each choice once, but {label!r} came twice.")
            options[label] = option
        if not options:
            raise ArchitectureError("An architecture must be words of the form label=option, but the text is empty.")
        return cls(options)

    def __getitem__(self, label: str) -> str:
        return self._options[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __hash__(self) -> int:
        return hash(frozenset(self._options.items()))

    def __str__(self) -> str:
        return " ".join(f"{label}={option}" for label, option in self._options.items())

    def __repr__(self) -> str:
        return f"Architecture.parse({str(self)!r})"

    def replace(self, label: str, option: str) -> Architecture:
        """The same architecture with one choice taken otherwise."""
        return Architecture({**self._options, label: option})
