"""The laws of spaces."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasengine.architecture import Architecture
from nasengine.registry import SPACES
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Decision, Supernet
from nasengine.task import Shapes
from nasengine.testing._parts import (
    random_alphas,
    random_batch,
    random_mixture,
    random_supernet,
    require,
    require_close,
    samples,
    varied,
)
from nasengine.testing.cost import check_cost
from nasengine.testing.elastic import (
    check_gates,
    check_idle,
    check_order,
    check_second_order,
    check_slices,
    check_sorting,
)
from nasengine.trial import check_network


def check_space(space: Space | type[Space] | type[nn.Module], shapes: Shapes) -> None:
    """All laws of a space, on random weights in float64; give it few channels and layers, or a class with such ones.

    Those of its supernet only if it is searchable.
    """
    if not isinstance(space, Space):
        space = SPACES.adapted(space)()
        check_network(space, shapes)
    check_text(space, shapes)
    check_networks(space, shapes)
    if not space.searchable:
        return
    check_relaxation(space, shapes)
    check_sharing(space, shapes)
    check_reentrancy(space, shapes)
    check_hard_cost(space, shapes)
    check_slices(space, shapes)
    check_second_order(space, shapes)
    check_idle(space, shapes)
    check_order(space, shapes)
    check_sorting(space, shapes)
    check_gates(space, shapes)
    check_cost(space, shapes)


def check_text(space: Space, shapes: Shapes, count: int = 50) -> None:
    """Texts read back, samples belong to the space, neighbours differ in one choice and those that it makes idle."""
    choices = space.choices(shapes)
    for architecture in varied(space, shapes, count):
        space.check(choices, architecture)
        require(list(architecture) == list(choices), "a sample must decide every choice, in their order")
        require(Architecture.parse(str(architecture)) == architecture, "Architecture.parse(str(a)) must be a")
        require(space.read(space.write(architecture)) == architecture, "space.read(space.write(a)) must be a")
        require(space.read(str(architecture)) == architecture, "space.read(str(a)) must be a")
        require(space.canonical(choices, architecture) == architecture, "a sample must be in its canonical form")
    drawn = [next(samples(space, shapes, 1)) for _ in range(2)]
    require(drawn[0] == drawn[1], "sample must depend on the generator alone")
    neighbours = space.neighbours(choices, drawn[0])
    require(len(set(neighbours)) == len(neighbours), "neighbours must be different from each other")
    for neighbour in neighbours:
        space.check(choices, neighbour)
        changed = [label for label in choices if neighbour[label] != drawn[0][label]]
        moves = (space.canonical(choices, drawn[0].replace(label, neighbour[label])) for label in changed)
        law = f"a neighbour must differ in one choice and those that it makes idle, but differs in {changed}"
        require(neighbour in moves, law)


def check_networks(space: Space, shapes: Shapes) -> None:
    """The supernet has the declared choices; derived networks give (batch, classes) in training and evaluation."""
    supernet = random_supernet(space, shapes, 0) if space.searchable else None
    declared, batch = space.choices(shapes), random_batch(shapes, 4, generator(1))
    if supernet is not None:
        require(supernet.choices == declared, "space.choices must be the choices of its network")
        require(list(supernet.choices) == list(declared), "space.choices must have the order of its network")
    for architecture in varied(space, shapes, 3):
        extracted = [] if supernet is None else [supernet.extract(architecture)]
        for network in (space.build(architecture, shapes).double(), *extracted):
            for training in (True, False):
                outputs = network.train(training)(batch.inputs)
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                require(
                    tuple(logits.shape) == (4, shapes.outputs),
                    f"a derived network must give (batch, classes), but gave {tuple(logits.shape)}",
                )


def check_relaxation(space: Space, shapes: Shapes) -> None:
    """One-hot mixture, hard mixture and extracted network give the same output, in training and in evaluation."""
    supernet, inputs = random_supernet(space, shapes, 0), random_batch(shapes, 4, generator(1)).inputs
    supernet(inputs, random_mixture(supernet, 0))  # moves the batch-norm statistics away from their start
    for architecture in varied(space, shapes, 3):
        for training in (False, True):
            supernet.train(training)
            hard = supernet(inputs, supernet.hard(architecture))
            require_close(supernet(inputs, supernet.one_hot(architecture)), hard, "one-hot must equal hard")
            require_close(supernet.extract(architecture)(inputs), hard, "the extracted network must equal hard")


def check_sharing(space: Space, shapes: Shapes) -> None:
    """The supernet that shares computations equals the one that does not: outputs, weight and alpha gradients."""
    for training in (True, False):
        shared = random_supernet(space, shapes, 0).train(training)
        plain_path = copy.deepcopy(shared)
        plain_path.share = False
        batch = random_batch(shapes, 4, generator(1))
        found = []
        for supernet in (shared, plain_path):
            alphas = random_alphas(supernet, 0)
            evaluation = supernet.evaluate(batch, alphas.mixture("softmax"))
            variables = [*supernet.parameters(), *alphas.parameters()]
            gradients = torch.autograd.grad(evaluation.loss, variables, materialize_grads=True)
            found.append([evaluation.outputs, evaluation.loss.detach(), *gradients])
        for fast, slow in zip(*found, strict=True):
            require_close(fast, slow, "sharing must change neither outputs nor gradients")


def check_reentrancy(space: Space, shapes: Shapes) -> None:
    """Two calls under two mixtures, in one graph or one inside the other, do not disturb each other."""
    supernet, batch = random_supernet(space, shapes, 0), random_batch(shapes, 4, generator(1))
    mixtures = [random_mixture(supernet, seed) for seed in range(2)]
    weights = list(supernet.parameters())

    def gradients(*losses: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(losses[1:], start=losses[0]), weights, materialize_grads=True)

    alone = [gradients(supernet.evaluate(batch, mixture).loss) for mixture in mixtures]
    both = gradients(*[supernet.evaluate(batch, mixture).loss for mixture in mixtures])
    for joint, one, other in zip(both, *alone, strict=True):
        require_close(joint, one + other, "two calls in one graph must not disturb each other")

    outer, inner = (supernet(batch.inputs, mixture) for mixture in mixtures)
    within: list[Tensor] = []

    def call_inside(*_: object) -> None:
        handle.remove()
        within.append(supernet(batch.inputs, mixtures[1]))

    handle = _decisions(supernet)[-1].register_forward_pre_hook(call_inside)
    require_close(supernet(batch.inputs, mixtures[0]), outer, "a call inside a call must not disturb the outer one")
    require_close(within[0], inner, "a call inside a call must not be disturbed by the outer one")


def check_hard_cost(space: Space, shapes: Shapes) -> None:
    """Under a hard mixture no option and no layer runs that the architecture does not take, nor a wider one."""
    supernet, inputs = random_supernet(space, shapes, 0).eval(), random_batch(shapes, 4, generator(1)).inputs
    supernet.requires_grad_(False)  # torch's counter of operations trips over parameters that are outputs
    ran: set[nn.Module] = set()
    parts = [(d.choices[0].label, *part) for d in _decisions(supernet) for part in d.parts()]
    for module in {module for _, module, _ in parts}:
        module.register_forward_hook(lambda module, *_: ran.add(module))
    for architecture in varied(space, shapes, 3):
        hard = supernet.hard(architecture)
        taken = {module for label, module, option in parts if architecture[label] == option}
        ran.clear()
        work = _work(lambda x, hard=hard: supernet(x, hard), inputs)  # type: ignore[misc]
        more = [type(module).__name__ for module in ran - taken]
        require(not more, f"a hard mixture must run the chosen options alone, but {more} ran as well")
        needed = _work(supernet.extract(architecture).requires_grad_(False), inputs)
        require(
            work <= needed,
            f"a hard mixture must compute no more than the extracted network, but did {work:,} "
            f"multiply-adds in place of {needed:,}",
        )


def _work(network: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """Multiply-adds an example, without those that are done once a call: the kernels cut out of larger ones."""
    counts = []
    for count in (1, 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(inputs[:count])
        counts.append(int(counter.get_total_flops()) // 2)
    return counts[1] - counts[0]


def _decisions(supernet: Supernet) -> list[Decision]:
    return [module for module in supernet.modules() if isinstance(module, Decision)]
