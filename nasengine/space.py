"""The contract of a search space."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

import networkx as nx
import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.encoding import Graphs, encode_choices
from nasengine.errors import ArchitectureError, DataError, SettingError, TooManyError
from nasengine.settings import plain
from nasengine.supernet import Supernet, choices_of, fix
from nasengine.task import Shapes

if TYPE_CHECKING:
    import pandas as pd

    from nasengine.benchmark import Results

Loss = Callable[[Tensor, Tensor], Tensor]

Progress = Callable[[int, int], object]
"""Is called with what is done and what there is in all."""

MOST_ENUMERATED: Final = 200_000

Benchmark = Callable[[Architecture], dict[str, float]]
"""Looks up the known accuracies of an architecture: shares 0..1 by name, the one that tells most first."""


@dataclass(frozen=True, kw_only=True)
class Space(abc.ABC):
    """A set of architectures. The fields are the settings of the space.

    A subclass is a frozen dataclass with a class attribute `name` that writes `network`: ordinary PyTorch with
    choices inside. A space with rules of its own overrides `derive` and `check`; one with a training form of its own
    overrides `final` and `build`. A space without a supernet is not `searchable`: it overrides `choices` and `build`,
    and its `network` raises a SettingError. One with tables of its own overrides `to_table`, `from_table` and
    `table_columns`, the columns that these two know: where there are others they are the user's.
    """

    name: ClassVar[str] = ""
    searchable: ClassVar[bool] = True
    table_columns: ClassVar[tuple[str, ...]] = ("architecture",)

    @abc.abstractmethod
    def network(self, shapes: Shapes) -> nn.Module:
        """The module that holds all architectures: inputs (batch, *shapes.input) -> (batch, shapes.outputs)."""

    def supernet(self, shapes: Shapes, loss: Loss) -> Supernet:
        """The network of this space as a supernet."""
        return Supernet(self, self.network(shapes), loss)

    def choices(self, shapes: Shapes) -> dict[str, Choice]:
        """The choices by label, without memory for the weights."""
        with torch.device("meta"):
            return choices_of(self.network(shapes))

    def blueprint(self, shapes: Shapes) -> nn.Module:
        """A network with these choices whose fixed form costs what `build` gives, both with these settings."""
        return self.network(shapes)

    def check(self, choices: Mapping[str, Choice], architecture: Architecture) -> None:
        """Raises ArchitectureError unless the architecture belongs to this space."""
        self.check_options(choices, architecture)
        for label, option in self.canonical(choices, architecture).items():
            if architecture[label] != option:
                raise ArchitectureError(
                    f"A choice without effect must take its first option, but {label!r} is {architecture[label]!r} in "
                    f"a part that is left out; make it {option!r}."
                )

    def check_options(self, choices: Mapping[str, Choice], architecture: Architecture) -> None:
        """Raises ArchitectureError unless it takes an option of every choice and names nothing else."""
        for label, choice in choices.items():
            if label not in architecture:
                raise ArchitectureError(f"The architecture must decide {label!r}, but names only {list(architecture)}.")
            if architecture[label] not in choice.options:
                raise ArchitectureError(
                    f"Choice {label!r} must be one of {', '.join(choice.options)}, but got {architecture[label]!r}."
                )
        unknown = [label for label in architecture if label not in choices]
        if unknown:
            raise ArchitectureError(f"Space {self.name!r} has no choice {unknown[0]!r}; it has {', '.join(choices)}.")

    def derive(self, choices: Mapping[str, Choice], weights: Mapping[str, Tensor]) -> Architecture:
        """The architecture of a soft mixture: the heaviest option of every choice that has an effect."""
        heaviest = {label: c.options[int(weights[label].argmax())] for label, c in choices.items()}
        return self.canonical(choices, Architecture(heaviest))

    def canonical(self, choices: Mapping[str, Choice], architecture: Architecture) -> Architecture:
        """The one architecture of this space with the same network: idle choices take their first option."""
        first = {label: choices[label].options[0] for label in self.unused(choices, architecture)}
        return Architecture({**architecture, **first})

    def unused(self, choices: Mapping[str, Choice], architecture: Architecture) -> Collection[str]:
        """Labels of the idle choices, which have no effect: those of modules that other choices leave out."""
        return {label for label, choice in choices.items() if not choice.has_effect(architecture)}

    def likelihood(
        self, choices: Mapping[str, Choice], weights: Mapping[str, Tensor], architecture: Architecture
    ) -> float:
        """How well an architecture fits a soft mixture: the sum of the logarithms of its options' weights.

        An idle choice counts as its heaviest option, since it fits any: so nothing fits better than what is derived.
        """
        idle = self.unused(choices, architecture)
        rows = [
            weights[label].max() if label in idle else weights[label][choice.options.index(architecture[label])]
            for label, choice in choices.items()
        ]
        return float(torch.stack(rows).clamp(min=1e-12).log().sum())

    def smallest(self, choices: Mapping[str, Choice]) -> Architecture:
        """The architecture of all smallest sizes, and the first operations where `derive` takes them."""
        return self.derive(choices, {label: -torch.arange(float(len(c.options))) for label, c in choices.items()})

    def cheapest(self, choices: Mapping[str, Choice]) -> Architecture | None:
        """The architecture that none has fewer parameters or multiply-adds than; None where a space does not say.

        A space that says it answers limits below it at once.
        """
        del choices
        return None

    def largest(self, choices: Mapping[str, Choice]) -> Architecture:
        """The architecture of all largest sizes, and the last operations where `derive` takes them."""
        return self.derive(choices, {label: torch.arange(float(len(c.options))) for label, c in choices.items()})

    def sample(self, choices: Mapping[str, Choice], generator: torch.Generator) -> Architecture:
        """A random architecture: what `derive` makes of independent uniform weights."""
        weights = {label: torch.rand(len(choice.options), generator=generator) for label, choice in choices.items()}
        return self.derive(choices, weights)

    def neighbours(self, choices: Mapping[str, Choice], architecture: Architecture) -> list[Architecture]:
        """All architectures of this space that differ in one choice, and in those that it makes idle."""
        found: dict[Architecture, None] = {}
        for label, choice in choices.items():
            for option in choice.options:
                candidate = self.canonical(choices, architecture.replace(label, option))
                if candidate != architecture and candidate not in found and self._allows(choices, candidate):
                    found[candidate] = None
        return list(found)

    def final(self) -> Self:
        """The settings with which a derived network is trained from scratch: these, unless a space has others."""
        return self

    def changes(self, final: Space) -> str:
        """What the final form changes, as settings of it: "final.channels=36 final.layers=20"; or nothing."""
        mine = plain(self)
        changed = {name: value for name, value in plain(final).items() if value != mine[name]}
        return " ".join(f"final.{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in changed.items())

    def form(self, final: Space) -> str:
        """The changes as a part of a sentence, which says whether they are those of `final`."""
        changes = self.changes(final)
        usual = " by default" if final == self.final() else ""
        return f"as it is trained{usual}, {changes}" if changes else ""

    def build(self, architecture: Architecture, shapes: Shapes) -> nn.Module:
        """The stand-alone network of an architecture, with new weights; in training it may give (logits, auxiliary)."""
        return fix(self.network(shapes), architecture, inherit=False)

    def graphs(self, architecture: Architecture) -> dict[str, nx.DiGraph[str]]:
        """The architecture as graphs: nodes in topological order, the attribute `operation` on edges or nodes.

        Here a chain of the choices, with those that have the same name up to a "/" in one node.
        """
        nodes: dict[str, list[str]] = {}
        for label, option in architecture.items():
            name, _, rest = label.partition("/")
            nodes.setdefault(name, []).append(f"{rest} {option}" if rest else option)
        graph: nx.DiGraph[str] = nx.DiGraph()
        for name, options in nodes.items():
            graph.add_node(name, operation=", ".join(options))
        nx.add_path(graph, nodes)
        return {self.name: graph}

    def encode(self, architectures: Sequence[Architecture], shapes: Shapes) -> Graphs:
        """Architectures as arrays for predictors; isomorphic ones give isomorphic graphs and equal numbers.

        Here a chain of the choices. A space whose architectures are cells gives `encode_cells` of `graphs`.
        """
        choices = self.choices(shapes)
        taken = [self.canonical(choices, architecture) for architecture in architectures]
        return encode_choices(choices, [self.unused(choices, architecture) for architecture in taken], taken)

    def everything(self, shapes: Shapes, progress: Progress | None = None) -> Sequence[Architecture]:
        """All architectures, no two of them the same network in two texts. Raises TooManyError.

        `progress` is called with (done, all).
        """
        del progress
        choices = self.choices(shapes)
        count = math.prod(len(choice.options) for choice in choices.values())
        if count > MOST_ENUMERATED:
            raise TooManyError(
                f"A space must have at most {MOST_ENUMERATED:,} combinations of options to be enumerated, but "
                f"{self.name!r} has {count:,}; name candidates or a number of random ones."
            )
        options = itertools.product(*(choice.options for choice in choices.values()))
        found = (Architecture(dict(zip(choices, taken, strict=True))) for taken in options)
        return list({a: None for a in found if self._allows(choices, a)})

    def to_table(self, architectures: Sequence[Architecture], shapes: Shapes) -> pd.DataFrame:
        """One row an architecture, such that `from_table` reads them back: here the column "architecture"."""
        import pandas as pd

        del shapes
        return pd.DataFrame({"architecture": [self.write(architecture) for architecture in architectures]})

    def from_table(self, table: pd.DataFrame) -> Sequence[Architecture]:
        """The architectures of the rows. Raises DataError with the number of the row, counted from 1."""
        if "architecture" not in table:
            raise DataError(
                f"A table of architectures must have the column 'architecture', but has {', '.join(map(str, table))}."
            )
        return [self._read_row(text, row) for row, text in enumerate(table["architecture"], start=1)]

    def _read_row(self, text: object, row: int) -> Architecture:
        try:
            return self.read(str(text))
        except ArchitectureError as error:
            raise DataError(f"Row {row} of a table must have an architecture: {error}") from None

    def write(self, architecture: Architecture) -> str:
        """The architecture in the text form that other tools of its field exchange."""
        return str(architecture)

    def read(self, text: str) -> Architecture:
        """What `write` wrote, or the text of an architecture. Raises ArchitectureError."""
        return Architecture.parse(text)

    def indicators(self, architecture: Architecture) -> dict[str, float]:
        """Numbers of an architecture that are worth watching during a search."""
        del architecture
        return {}

    def warning(self, architecture: Architecture) -> str:
        """A sentence when an architecture looks degenerate, else an empty text."""
        del architecture
        return ""

    def benchmark(self, path: Path) -> Benchmark:
        """The known accuracies in a table of this space. Raises DataError, and SettingError where there are none."""
        raise SettingError(
            f"A benchmark must be a table of the space, but space {self.name!r} has none, so that {path} cannot be "
            "read; leave out --benchmark."
        )

    def convert_results(self, source: Path, out: Path, progress: Progress | None = None) -> None:
        """Makes of the published file the table that `results` opens. Raises DataError, and SettingError if none is.

        `progress` is called with (bytes done, bytes in all).
        """
        del source, out, progress
        raise SettingError(self._unpublished("converted"))

    def results(self, path: Path) -> Results:
        """Everything in a converted table. Raises DataError, and SettingError where none is published."""
        del path
        raise SettingError(self._unpublished("looked up"))

    def _unpublished(self, done: str) -> str:
        return (
            f"Results must be published in a file of their own to be {done}, but those of space {self.name!r} are not; "
            "name another --space."
        )

    def _allows(self, choices: Mapping[str, Choice], architecture: Architecture) -> bool:
        try:
            self.check(choices, architecture)
        except ArchitectureError:
            return False
        return True
