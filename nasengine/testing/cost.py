"""The law of costs: what a space's cost model says is what the derived networks cost."""

from __future__ import annotations

from operator import lt

import torch

from nasengine import cost
from nasengine.budget import Cost, CostModel
from nasengine.outline import Sketches
from nasengine.space import Space
from nasengine.task import Shapes
from nasengine.testing._parts import require, samples

_HELD = 3


def check_cost(space: Space, shapes: Shapes, count: int = 5) -> None:
    """Modelled costs are exactly those of the networks that `final().build` makes, and expected ones where decided.

    So are the bytes that they hold.
    """
    final = space.final()
    model, choices, sketches = CostModel(final, shapes), space.choices(shapes), Sketches(final, shapes)
    require(model.choices == choices, "the blueprint must have the choices of the space")
    drawn = dict.fromkeys([space.smallest(choices), space.largest(choices), *samples(space, shapes, count)])
    for architecture in drawn:
        with torch.device("meta"):
            network = space.final().build(architecture, shapes)
        found = Cost(cost.parameters(network), cost.multiply_adds(lambda n=network: n, shapes))  # type: ignore[misc]
        said = model.of(architecture)
        require(said == found, f"a network must cost what the model says, {_told(said)}, but it costs {_told(found)}")
        places = {label: choice.options.index(architecture[label]) for label, choice in choices.items()}
        one_hot = {label: torch.eye(len(choices[label].options)).double()[place] for label, place in places.items()}
        for mixture in (places, one_hot):
            expected = Cost(*(round(float(number)) for number in model.expected(mixture)))
            require(expected == said, "the expected cost must be exact where all is decided")
    least = final.cheapest(choices)
    if least is not None:
        others = [*drawn, *final.neighbours(choices, least)]
        below = [a for a in others if any(map(lt, model.of(a), model.of(least)))]
        require(not below, f"no architecture may cost less than the least one, but {below[:1]} does")
        computed = cost.work(final.build(least, shapes).eval(), shapes.zeros(1))
        require(computed == model.of(least).multiply_adds, "the work must be the same on any device")
    for architecture in list(drawn)[:_HELD]:
        held = cost.memory(lambda a=architecture: space.final().build(a, shapes), shapes)  # type: ignore[misc]
        walked = sketches(architecture).memory
        require(walked == held, f"the blueprint must hold {held:,} bytes as the derived network does, not {walked:,}")


def _told(found: Cost) -> str:
    return f"{found.parameters:,} parameters and {found.multiply_adds:,} multiply-adds"
