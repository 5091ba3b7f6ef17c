"""Trial runs before a search: what does not fit is told by the choice to blame, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nasengine.architecture import Choice
from nasengine.cost import multiply_adds
from nasengine.errors import ArchitectureError, NasengineError, reason
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Decision, Mixture, Supernet
from nasengine.task import Shapes
from nasengine.units import elastic_layers

_BATCH = 2
_LEVELS = 6  # steps from all smallest to all largest sizes
_SIDES = ("depth", "height", "width")
_ROUNDING = 1e-3  # a wrong unit makes a larger difference


def check_network(space: Space, shapes: Shapes, device: torch.device | None = None) -> None:
    """Runs a network of a space on two random inputs, which together cost about a step of a search.

    It runs with all options at once, with a few architectures that have every operation and any two sizes at different
    ends, with all weight on their options, and without its choices.

    Raises:
        ArchitectureError: there is nothing to choose, the network fails, or its outputs are not (batch, outputs).
    """
    supernet = space.supernet(shapes, lambda outputs, _: outputs.sum())
    if not supernet.choices:
        raise ArchitectureError(
            f"There must be something to search, but the network of {space.name!r} has no choices; put a Size, an "
            "ElasticDepth or a MixedOp into modules that it registers, and no Python lists."
        )
    _check_untied(supernet.network)
    trials = _Trials(supernet.eval(), shapes, device or torch.device("cpu"))
    together = trials.failure(trials.even())
    if together is not None and together.mended:
        raise ArchitectureError(together.sentence())
    levels, crossed = _levels(supernet.choices), _crossed(supernet.choices)
    failures = [(level, trials.failure(level)) for level in levels]
    if all(failure is None for _, failure in failures):
        failures += [(level, trials.failure(level)) for level in crossed]
    if any(failure is not None for _, failure in failures):
        raise ArchitectureError(_blamed(trials, failures))
    if together is not None:
        raise ArchitectureError(together.sentence(f"The network of {space.name!r} must run on weighted options"))
    _check_weights(trials, levels[0])
    _check_alone(space, shapes, supernet.choices)


def _check_untied(network: nn.Module) -> None:
    """Raises ArchitectureError if an elastic layer shares a weight, which sorting and slicing would change twice."""
    elastic = {part for layer in elastic_layers(network) for part in layer.modules()}
    owners: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            first, owner = owners.setdefault(parameter, (name, module))
            if owner is not module and not elastic.isdisjoint((owner, module)):
                raise ArchitectureError(
                    f"Elastic layers must have weights of their own, but {first!r} and {name!r} share one; untie them."
                )


class _Failure(NamedTuple):
    """What went wrong: in which module, and why, as parts of a sentence."""

    where: str
    why: str
    mended: bool  # whether `why` is a sentence that says what to do

    def sentence(self, must: str = "", at: str = "", advice: str = "") -> str:
        """One sentence; `at` says with which option."""
        place = ", ".join(part for part in (self.where, at) if part)
        if self.mended:
            return f"{self.why}{place and f' ({place})'}."
        return f"{must}, but fails{place and f' ({place})'}: {self.why}{advice and f'; {advice}'}."


class _Trials:
    """Runs of one supernet that may fail."""

    def __init__(self, supernet: Supernet, shapes: Shapes, device: torch.device) -> None:
        self.supernet, self.shapes = supernet.to(device), shapes
        self.inputs = _random(shapes).to(device)
        self._running: list[str] = []
        for name, module in supernet.network.named_modules():
            told = f"in {name!r}, {type(module).__name__}" if name else ""
            module.register_forward_pre_hook(lambda *_, told=told: self._running.append(told))
            module.register_forward_hook(lambda *_: self._left())
            _require_batches(module, shapes)
        for decision in (module for module in supernet.network.modules() if isinstance(module, Decision)):
            for part in dict.fromkeys(part for part, _ in decision.parts()):
                _forbid_in_place(part, decision.choices[0].label)

    def even(self) -> Mixture:
        """All options of all choices with equal weights."""
        counts = {label: len(choice.options) for label, choice in self.supernet.choices.items()}
        return {label: torch.full((count,), 1 / count, device=self.inputs.device) for label, count in counts.items()}

    def moved(self, places: Mapping[str, int]) -> bool:
        """Whether the outputs change when options have all the weight in place of being alone."""
        like, choices = next(self.supernet.parameters()), self.supernet.choices
        weights = {k: torch.eye(len(c.options)).to(like)[places[k]] for k, c in choices.items()}
        with torch.no_grad():
            alone, weighed = (self.supernet(self.inputs, mixture) for mixture in (places, weights))
        return float((weighed - alone).abs().max()) > _ROUNDING * float(alone.abs().max())

    def failure(self, mixture: Mixture) -> _Failure | None:
        """How a call under a mixture fails, if it does."""
        self._running.clear()
        try:
            with torch.no_grad():
                outputs = self.supernet(self.inputs, mixture)
        except NasengineError as error:
            return _Failure(self._innermost(), str(error).rstrip("."), True)
        except Exception as error:
            return _Failure(self._innermost(), reason(error), False)
        wrong = _wrong_outputs(outputs, self.shapes)
        return _Failure("", wrong, True) if wrong else None

    def _left(self) -> None:
        self._running.pop()

    def _innermost(self) -> str:
        return self._running[-1] if self._running else ""


def _require_batches(module: nn.Module, shapes: Shapes) -> None:
    """A convolution must get a batch: with a dimension less torch takes the batch for the channels."""
    kind = type(module).__name__
    found = re.search(r"Conv([123])d$", kind)
    if found is None or type(module).__module__.partition(".")[0] not in ("torch", "nasengine"):
        return
    dims = int(found[1])
    wanted = ", ".join(("batch", "channels", *_SIDES[-dims:]))

    def entered(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = tuple(inputs[0].shape)
        if len(shape) != dims + 2:
            other = f"Conv{len(shape) - 2}d" if len(shape) > 2 else "Linear or Embedding"
            raise ArchitectureError(
                f"A layer {kind} must get ({wanted}), but gets the shape {shape} from a batch of {_BATCH} inputs of "
                f"shape {shapes.input}; take a layer for these, such as {other}, or data that have the sides"
            )

    module.register_forward_pre_hook(entered)


def _forbid_in_place(part: nn.Module, label: str) -> None:
    """What a choice is between must leave its input as it is: other options read it."""
    versions: list[int] = []

    def entered(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        versions.append(inputs[0]._version)

    def left(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        del output
        if inputs[0]._version != versions.pop():
            raise ArchitectureError(
                f"What choice {label!r} decides on must not change its input, but this does; set inplace=False in it"
            )

    part.register_forward_pre_hook(entered)
    part.register_forward_hook(left)


def _levels(choices: Mapping[str, Choice]) -> list[dict[str, int]]:
    """Places of the options of every choice: all operations are met, sizes rise in a few steps to the largest."""
    counts = [len(choice.options) for choice in choices.values() if not choice.ordinal]
    sizes = [min(len(choice.options), _LEVELS) for choice in choices.values() if choice.ordinal]
    steps = max(*counts, *sizes, 2, 2) - 1

    def place(choice: Choice, level: int) -> int:
        last = len(choice.options) - 1
        return round(level * last / steps) if choice.ordinal else min(level, last)

    return [{label: place(choice, level) for label, choice in choices.items()} for level in range(steps + 1)]


def _crossed(choices: Mapping[str, Choice]) -> list[dict[str, int]]:
    """Places such that any two sizes are once the smallest and the largest, and once the other way round.

    The binary digits of their numbers say which; what leaves out other choices stays at its largest.
    """
    around = {label for choice in choices.values() for place in choice.places for label in place}
    sizes = [label for label, choice in choices.items() if choice.ordinal and label not in around]
    largest = {label: len(choice.options) - 1 if choice.ordinal else 0 for label, choice in choices.items()}
    digits = range((len(sizes) - 1).bit_length() if sizes else 0)
    return [
        {**largest, **{label: 0 for number, label in enumerate(sizes) if (number >> digit & 1) == side}}
        for digit in digits
        for side in (0, 1)
    ]


def _check_weights(trials: _Trials, smallest: Mapping[str, int]) -> None:
    """Raises ArchitectureError if sizes with all the weight on one option compute something else than that option."""
    choices = trials.supernet.choices
    ordinal = [label for label, choice in choices.items() if choice.ordinal]
    if not ordinal or not trials.moved(smallest):
        return
    last = {label: len(choice.options) - 1 for label, choice in choices.items()}
    alone = [label for label in ordinal if trials.moved({**last, label: 0})]
    raise ArchitectureError(
        f"The network of {_name(trials)} must compute the same with a size alone and with all the weight on it, but "
        f"does not for {' and '.join(map(repr, alone or ordinal))}; add what has an elastic width and do not "
        "concatenate or reshape it, or read the parts by a layer each."
    )


def _blamed(trials: _Trials, failures: list[tuple[dict[str, int], _Failure | None]]) -> str:
    """The sentence about the choice that is found by changing one at a time."""
    bad, first = next((level, failure) for level, failure in reversed(failures) if failure is not None)
    good = [level for level, failure in failures if failure is None]
    if good:
        label, failure = _difference(trials, good[-1], bad, first)
        return _told(trials, label, bad[label], failure)
    suspects = set(_suspects(trials, bad, first))
    if len(suspects) == 1:
        label = suspects.pop()
        return _told(trials, label, bad[label], first)
    return first.sentence(f"The network of {_name(trials)} must run on inputs of shape {trials.shapes.input}")


def _difference(trials: _Trials, good: dict[str, int], bad: dict[str, int], last: _Failure) -> tuple[str, _Failure]:
    """The choice whose change alone makes the network fail; of several that do so together the last one."""
    changed = [label for label in good if good[label] != bad[label]]
    for label in changed:
        failure = trials.failure({**good, label: bad[label]})
        if failure is not None:
            return label, failure
    for label in changed:
        good = {**good, label: bad[label]}
        failure = trials.failure(good)
        if failure is not None:
            return label, failure
    return changed[-1], last


def _suspects(trials: _Trials, bad: dict[str, int], first: _Failure) -> Iterator[str]:
    """The choices that change how the network fails, if not whether."""
    for label, choice in trials.supernet.choices.items():
        last = len(choice.options) - 1
        if any(trials.failure({**bad, label: place}) != first for place in {0, last // 2, last} - {bad[label]}):
            yield label


def _told(trials: _Trials, label: str, place: int, failure: _Failure) -> str:
    choice = trials.supernet.choices[label]
    must = f"The network of {_name(trials)} must run whatever choice {label!r} decides"
    sized = "take an elastic layer of that size, or leave the option out"
    advice = sized if choice.ordinal else "let all options give one shape"
    return failure.sentence(must, f"with {label}={choice.options[place]}", advice)


def _random(shapes: Shapes) -> Tensor:
    rng = generator(0)
    if shapes.vocabulary:
        return torch.randint(shapes.vocabulary, (_BATCH, *shapes.input), generator=rng)
    return torch.randn(_BATCH, *shapes.input, generator=rng)


def _name(trials: _Trials) -> str:
    return repr(trials.supernet.space.name)


def _check_alone(space: Space, shapes: Shapes, choices: Mapping[str, Choice]) -> None:
    """Counts the smallest architecture, as it will be when the search has ended."""
    smallest = space.smallest(choices)
    try:
        multiply_adds(lambda: space.build(smallest, shapes), shapes)
    except NasengineError:
        raise
    except Exception as error:
        raise ArchitectureError(
            f"The network of {space.name!r} must run without its choices on the meta device, where its cost is "
            f"counted, but fails: {reason(error)}; let it only call the modules that hold choices, and make tensors on "
            "the device of its inputs."
        ) from error


def _wrong_outputs(outputs: object, shapes: Shapes) -> str:
    if isinstance(outputs, Tensor) and outputs.shape == (_BATCH, shapes.outputs):
        return ""
    came = f"{tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    return (
        f"The outputs of a network must have the shape (batch, {shapes.outputs}), but for a batch of {_BATCH} it gave "
        f"{came}; end it with a layer of shapes.outputs numbers"
    )
