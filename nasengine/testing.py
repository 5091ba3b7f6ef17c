"""Contract tests and toys for plug-ins: call `check_space` and `check_algorithm` in the tests of your own.

>>> from nasengine.algorithms.darts import DARTS
>>> check_algorithm(DARTS())

A check that fails raises AssertionError with a sentence that says which law is broken.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithm import Algorithm, StepInfo, load_state_dict, state_dict
from nasengine.alphas import Alphas, detached
from nasengine.architecture import Architecture
from nasengine.seeding import generator
from nasengine.settings import from_plain, plain
from nasengine.space import Space
from nasengine.supernet import MixedOp, Supernet
from nasengine.task import Batch, Shapes

STEPS: Final = 6
"""Steps that `check_algorithm` takes."""


# The solvable model


class _Plane(nn.Module):
    """The point (w, a): one weight, and the mixture weight of the one option of choice "a"."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
        self.a = MixedOp("a", {"one": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.w.expand_as(x), self.a(x)], dim=-1)


@dataclass(frozen=True, kw_only=True)
class SolvableSpace(Space):
    """The space of the solvable model; its one choice has one option."""

    def network(self, shapes: Shapes) -> nn.Module:
        del shapes
        return _Plane()


def solvable_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """L_train = (w - a)^2 where the target is 0, L_val = a w - 2a + 1 where it is 1."""
    w, a = outputs.unbind(-1)
    return torch.where(targets == 0, (w - a) ** 2, a * w - 2 * a + 1).mean()


class Solvable(NamedTuple):
    """A supernet with one weight, and the batches that stand for its two losses."""

    supernet: Supernet
    train: Batch
    valid: Batch


def solvable() -> Solvable:
    """The model of arXiv:1806.09055, figure 2, on the real classes, in float64 and with w = -2.

    min_a L_val(w*(a), a) has its answer at a = w = 1. Use relaxation="identity", which makes the alpha itself the
    weight a, and put a where it starts with `place(state.alphas, 2.0)`.
    """
    supernet = SolvableSpace().supernet(Shapes((), 2), solvable_loss)
    one = torch.ones(1, dtype=torch.float64)
    return Solvable(supernet, Batch(one, torch.tensor([0])), Batch(one, torch.tensor([1])))


def place(module: nn.Module, value: float) -> None:
    """Sets all parameters of a module (alphas, a copy of the weights) to one value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


# A small smooth network


class _Smooth(nn.Module):
    def __init__(self, shapes: Shapes, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(shapes.input[0], width), nn.BatchNorm1d(width))
        self.layers = nn.Sequential(*[self._layer(f"layer/{place}", width) for place in range(2)])
        self.classifier = nn.Linear(width, shapes.classes)

    @staticmethod
    def _layer(label: str, width: int) -> MixedOp:
        dense = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        gate = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Sigmoid())
        return MixedOp(label, {"dense": dense, "gate": gate, "skip": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(torch.tanh(self.stem(x))))
        return logits


@dataclass(frozen=True, kw_only=True)
class SmoothSpace(Space):
    """Two layers out of three operations, infinitely differentiable, with batch norm: the smallest real search."""

    name: ClassVar[str] = ""

    width: int = 6

    def network(self, shapes: Shapes) -> nn.Module:
        return _Smooth(shapes, self.width)


def smooth(seed: int = 0) -> Solvable:
    """A small smooth classifier of 3 classes in float64, with two batches of 16 random points."""
    shapes, rng = Shapes((4,), 3), generator(seed, 1)
    supernet = _supernet(SmoothSpace(), shapes, seed)
    return Solvable(supernet, *(_batch(shapes, 16, rng) for _ in range(2)))


# Spaces


def check_space(space: Space, shapes: Shapes) -> None:
    """All laws of a space, on random weights in float64; give it few channels and layers."""
    check_text(space, shapes)
    check_networks(space, shapes)
    check_relaxation(space, shapes)
    check_sharing(space, shapes)
    check_reentrancy(space, shapes)
    check_hard_cost(space, shapes)


def check_text(space: Space, shapes: Shapes, samples: int = 50) -> None:
    """Text forms read back, samples belong to the space, neighbours differ in one choice."""
    choices = space.choices(shapes)
    for architecture in _samples(space, shapes, samples):
        space.check(choices, architecture)
        _require(list(architecture) == list(choices), "a sample must decide every choice, in their order")
        _require(Architecture.parse(str(architecture)) == architecture, "Architecture.parse(str(a)) must be a")
        _require(space.read(space.write(architecture)) == architecture, "space.read(space.write(a)) must be a")
    drawn = [next(_samples(space, shapes, 1)) for _ in range(2)]
    _require(drawn[0] == drawn[1], "sample must depend on the generator alone")
    neighbours = space.neighbours(choices, drawn[0])
    _require(len(set(neighbours)) == len(neighbours), "neighbours must be different from each other")
    for neighbour in neighbours:
        space.check(choices, neighbour)
        changed = [label for label in choices if neighbour[label] != drawn[0][label]]
        _require(len(changed) == 1, f"a neighbour must differ in one choice, but differs in {changed}")


def check_networks(space: Space, shapes: Shapes) -> None:
    """The supernet has the declared choices; derived networks give (batch, classes) in training and evaluation."""
    supernet, batch = _supernet(space, shapes, 0), _batch(shapes, 4, generator(1))
    declared = space.choices(shapes)
    _require(supernet.choices == declared, "space.choices must be the choices of its network")
    _require(list(supernet.choices) == list(declared), "space.choices must have the order of its network")
    for architecture in _samples(space, shapes, 3):
        for network in (space.build(architecture, shapes).double(), supernet.extract(architecture)):
            for training in (True, False):
                outputs = network.train(training)(batch.inputs)
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                _require(
                    tuple(logits.shape) == (4, shapes.classes),
                    f"a derived network must give (batch, classes), but gave {tuple(logits.shape)}",
                )


def check_relaxation(space: Space, shapes: Shapes) -> None:
    """One-hot mixture, hard mixture and extracted network give the same output, in training and in evaluation."""
    supernet, inputs = _supernet(space, shapes, 0), _batch(shapes, 4, generator(1)).inputs
    supernet(inputs, _soft(supernet, 0))  # moves the batch-norm statistics away from their start
    for architecture in _samples(space, shapes, 3):
        for training in (False, True):
            supernet.train(training)
            hard = supernet(inputs, supernet.hard(architecture))
            _require_close(supernet(inputs, supernet.one_hot(architecture)), hard, "one-hot must equal hard")
            _require_close(supernet.extract(architecture)(inputs), hard, "the extracted network must equal hard")


def check_sharing(space: Space, shapes: Shapes) -> None:
    """The supernet that shares computations equals the one that does not: outputs, weight and alpha gradients."""
    for training in (True, False):
        shared = _supernet(space, shapes, 0).train(training)
        plain_path = copy.deepcopy(shared)
        plain_path.share = False
        batch = _batch(shapes, 4, generator(1))
        found = []
        for supernet in (shared, plain_path):
            alphas = _alphas(supernet, 0)
            evaluation = supernet.evaluate(batch, alphas.mixture("softmax"))
            variables = [*supernet.parameters(), *alphas.parameters()]
            gradients = torch.autograd.grad(evaluation.loss, variables, materialize_grads=True)
            found.append([evaluation.outputs, evaluation.loss.detach(), *gradients])
        for fast, slow in zip(*found, strict=True):
            _require_close(fast, slow, "sharing must change neither outputs nor gradients")


def check_reentrancy(space: Space, shapes: Shapes) -> None:
    """Two calls under two mixtures, in one graph or one inside the other, do not disturb each other."""
    supernet, batch = _supernet(space, shapes, 0), _batch(shapes, 4, generator(1))
    mixtures = [_soft(supernet, seed) for seed in range(2)]
    weights = list(supernet.parameters())

    def gradients(*losses: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(losses[1:], start=losses[0]), weights, materialize_grads=True)

    alone = [gradients(supernet.evaluate(batch, mixture).loss) for mixture in mixtures]
    both = gradients(*[supernet.evaluate(batch, mixture).loss for mixture in mixtures])
    for joint, one, other in zip(both, *alone, strict=True):
        _require_close(joint, one + other, "two calls in one graph must not disturb each other")

    outer, inner = (supernet(batch.inputs, mixture) for mixture in mixtures)
    within: list[Tensor] = []

    def call_inside(*_: object) -> None:
        handle.remove()
        within.append(supernet(batch.inputs, mixtures[1]))

    handle = _mixed(supernet)[-1].register_forward_pre_hook(call_inside)
    _require_close(supernet(batch.inputs, mixtures[0]), outer, "a call inside a call must not disturb the outer one")
    _require_close(within[0], inner, "a call inside a call must not be disturbed by the outer one")


def check_hard_cost(space: Space, shapes: Shapes) -> None:
    """Under a hard mixture no option runs that the architecture does not take."""
    supernet, inputs = _supernet(space, shapes, 0), _batch(shapes, 4, generator(1)).inputs
    ran: set[nn.Module] = set()
    for mixed in _mixed(supernet):
        for option in mixed.options:
            option.register_forward_hook(lambda module, *_: ran.add(module))
    for architecture in _samples(space, shapes, 3):
        hard = supernet.hard(architecture)
        taken = {mixed.options[hard[mixed.choice.label]] for mixed in _mixed(supernet)}
        ran.clear()
        supernet(inputs, hard)
        more = [type(module).__name__ for module in ran - taken]
        _require(not more, f"a hard mixture must run the chosen options alone, but {more} ran as well")


# Algorithms


def check_algorithm(algorithm: Algorithm[Any]) -> None:
    """All laws of an algorithm, on the solvable model and on a small smooth classifier."""
    check_settings(algorithm)
    for toy in (solvable, smooth):
        models = [toy() for _ in range(4)]
        _check_steps(algorithm, *models[:2])
        _check_continuation(algorithm, *models[2:])
    _check_seeds(algorithm)
    _check_statistics(algorithm)


def check_settings(algorithm: Algorithm[Any]) -> None:
    """The fields are frozen, and come back from JSON."""
    _require(dataclasses.is_dataclass(algorithm), "an algorithm must be a dataclass")
    for field in dataclasses.fields(algorithm):
        try:
            setattr(algorithm, field.name, getattr(algorithm, field.name))
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"an algorithm must be frozen, but {field.name!r} can be set")
    again = from_plain(type(algorithm), json.loads(json.dumps(plain(algorithm))), "algo")
    _require(again == algorithm, "the settings must come back from their plain form")


def run_steps(algorithm: Algorithm[Any], state: object, model: Solvable, steps: int) -> list[StepInfo]:
    """Takes steps on the two batches of a toy."""
    return [algorithm.step(state, model.train, model.valid) for _ in range(steps)]


def _check_steps(algorithm: Algorithm[Any], first: Solvable, second: Solvable) -> None:
    before = plain(algorithm)
    states = [algorithm.init(model.supernet, generator(0), STEPS) for model in (first, second)]
    for _ in range(STEPS):  # in turns: what the instance remembered of one search would show in the other
        infos = [run_steps(algorithm, s, m, 1)[0] for s, m in zip(states, (first, second), strict=True)]
        _require(_same(infos[0], infos[1]), "equal seeds must give equal steps")
        _require(not any(tensor.requires_grad for tensor in infos[0]), "a StepInfo must carry no gradient")
    _require(_same(*map(state_dict, states)), "equal seeds must give equal states")
    _require(plain(algorithm) == before, "an algorithm must not change its settings")

    saved = _saved(states[0])
    supernet, mixture = algorithm.supernet(states[0]), algorithm.mixture(states[0])
    _require(mixture.keys() == supernet.choices.keys(), "the mixture must decide every choice")
    soft = [weights for weights in mixture.values() if isinstance(weights, Tensor)]
    _require(not any(weights.requires_grad for weights in soft), "the mixture must carry no gradient")
    supernet.space.check(supernet.choices, algorithm.derive(states[0]))
    _require(_same(saved, state_dict(states[0])), "mixture, supernet and derive must change nothing")


def _check_continuation(algorithm: Algorithm[Any], first: Solvable, second: Solvable) -> None:
    state = algorithm.init(first.supernet, generator(0), STEPS)
    run_steps(algorithm, state, first, STEPS // 2)
    place(second.supernet, 0.5)
    other = algorithm.init(second.supernet, generator(1), STEPS)
    load_state_dict(other, state_dict(state))
    _require(_same(_saved(other), state_dict(state)), "a state must come back from a file as plain values and tensors")
    for s, model in ((state, first), (other, second)):
        run_steps(algorithm, s, model, STEPS - STEPS // 2)
    _require(_same(state_dict(state), state_dict(other)), "a state that was saved must continue bit for bit")


def _check_seeds(algorithm: Algorithm[Any]) -> None:
    states = []
    for seed in range(2):
        model = smooth()
        states.append(algorithm.init(model.supernet, generator(seed), STEPS))
        run_steps(algorithm, states[-1], model, STEPS)
    _require(not _same(*map(state_dict, states)), "another seed must give another search")


def _check_statistics(algorithm: Algorithm[Any]) -> None:
    model = smooth()
    state = algorithm.init(model.supernet, generator(0), STEPS)
    supernet = algorithm.supernet(state)
    run_steps(algorithm, state, model, 1)
    counts = [int(buffer) for name, buffer in supernet.named_buffers() if name.endswith("num_batches_tracked")]
    _require(
        max(counts) <= 1, f"a step must update the batch-norm statistics once at most, but did {max(counts)} times"
    )
    before = copy.deepcopy(dict(supernet.named_buffers()))
    supernet.evaluate(model.valid, algorithm.mixture(state), dict(supernet.named_parameters()))
    _require(_same(before, dict(supernet.named_buffers())), "a virtual pass must leave the batch-norm statistics alone")


# Parts of the checks


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(f"{law[0].upper()}{law[1:]}.")


def _require_close(actual: Tensor, expected: Tensor, law: str) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    difference = float((actual - expected).detach().abs().max()) / scale
    _require(actual.shape == expected.shape and difference < 1e-9, f"{law}, but they differ by {difference:.1e}")


def _same(one: object, other: object) -> bool:
    """Whether nested containers are equal, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def _saved(state: object) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict(state), file)
    file.seek(0)
    saved: dict[str, Any] = torch.load(file, weights_only=True)
    return saved


def _supernet(space: Space, shapes: Shapes, seed: int) -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return space.supernet(shapes, F.cross_entropy).double()


def _batch(shapes: Shapes, size: int, rng: torch.Generator) -> Batch:
    inputs = torch.randn(size, *shapes.input, generator=rng, dtype=torch.float64)
    return Batch(inputs, torch.randint(shapes.classes, (size,), generator=rng))


def _alphas(supernet: Supernet, seed: int) -> Alphas:
    return Alphas(supernet.choices, generator(seed, 2), 1.0, like=next(supernet.parameters()))


def _soft(supernet: Supernet, seed: int) -> dict[str, Tensor]:
    return detached(_alphas(supernet, seed).mixture("softmax"))


def _samples(space: Space, shapes: Shapes, count: int) -> Iterator[Architecture]:
    choices, rng = space.choices(shapes), generator(0, 3)
    return (space.sample(choices, rng) for _ in range(count))


def _mixed(supernet: Supernet) -> list[MixedOp]:
    return [module for module in supernet.modules() if isinstance(module, MixedOp)]
