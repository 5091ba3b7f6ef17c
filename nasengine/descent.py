"""The architecture that is least above the limits: descent by changes of one choice, and what is said where none is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Final

from nasengine.architecture import Architecture
from nasengine.cost import memory, parameters, work
from nasengine.errors import ArchitectureError, LimitError
from nasengine.settings import in_seconds

if TYPE_CHECKING:
    from nasengine.budget import CostModel, FullCost, Limits, Measured
    from nasengine.space import Space
    from nasengine.task import Shapes

Key = Callable[["FullCost"], float]
Rank = tuple[float, ...]

_SHARES: Final = tuple(share / 10 for share in range(11))
"""Weights of one of two costs in their sum, as starts of a descent."""

_FEW_SHARES: Final = (0.25, 0.5, 0.75)
_OPTIONS: Final = ("--max-params", "--max-flops", "--max-latency", "--max-memory")
_LATENCY: Final = 2
_MEMORY: Final = 3
_FAR: Final = 0.5  # of what one network takes


def refuse_early(space: Space, shapes: Shapes, limits: Limits, measured: Measured, form: str = "") -> None:
    """Raises LimitError for limits below the least network of a space that knows it, from that network alone.

    Others may be faster or hold less: a latency or memory is refused only where it is far below.

    Args:
        space: in its final form; `form` says what that changes.
        measured: tells seconds.
    """
    least = space.cheapest(space.choices(shapes))
    if least is None:
        return
    network = space.build(least, shapes).eval().requires_grad_(False)  # no meta device, whose first use takes a second
    costs: list[Callable[[], float]] = [
        lambda: parameters(network),
        lambda: work(network, shapes.zeros(1)),
        lambda: measured.measure(least),
        lambda: memory(lambda: space.build(least, shapes), shapes),
    ]
    for place, limit in enumerate(limits.all()):
        if limit is not None:
            found = costs[place]()
            if limit < found * (_FAR if place in (_LATENCY, _MEMORY) else 1):
                raise LimitError(_below(space, form, place, limit, found))


def nearest(model: CostModel, limits: Limits) -> Architecture:
    """The architecture that is least above the limits, found by changing one choice at a time.

    Where one architecture is the smallest in all costs, as in spaces of sizes, it is found if any keeps the limits.
    Where two limits pull two ways, descent on their sums by several weights may miss one that barely keeps both.

    Raises:
        LimitError: it is above them; the message has the nearest feasible value.
    """

    def excess(cost: FullCost) -> float:
        return float(limits.excess(cost))

    smallest = model.space.smallest(model.choices)
    _refuse_early(model, limits, smallest)
    best = _least(model, limits, excess, smallest)
    limited = [place for place, limit in enumerate(limits.all()) if limit]
    for one, other in combinations(limited, 2):
        for share in _SHARES if other < _LATENCY else _FEW_SHARES:
            if model.excess(best, limits) > 0:
                start = _least(model, limits, _sum_of(limits, one, other, share), smallest)
                found = _least(model, limits, excess, start)
                best = min(best, found, key=lambda a: model.excess(a, limits))
    if model.excess(best, limits) > 0:
        raise LimitError(_impossible(model, limits, best))
    return best


def _refuse_early(model: CostModel, limits: Limits, smallest: Architecture) -> None:
    """Raises LimitError for a latency far below the fastest network, without the measurements of a calibration."""
    measured = model.measured
    if measured is None or not limits.latency or measured.is_calibrated():
        return
    with measured.roughly():
        fastest = _least(model, limits, lambda cost: cost[_LATENCY], smallest)
    seconds = measured.measure(fastest)
    if limits.latency < _FAR * seconds:
        raise LimitError(_below(model.space, model.form, _LATENCY, limits.latency, seconds))


def _sum_of(limits: Limits, one: int, other: int, share: float) -> Key:
    most = limits.all()
    weights = share / (most[one] or 1), (1 - share) / (most[other] or 1)
    return lambda cost: weights[0] * cost[one] + weights[1] * cost[other]


def _least(model: CostModel, limits: Limits, key: Key, start: Architecture) -> Architecture:
    """What descent on a key, then on the costs, ends at; at once where the key is 0."""

    def rank(architecture: Architecture) -> Rank:
        cost = model.full(architecture, limits)
        return key(cost), *cost

    best, least = start, rank(start)
    while least[0] > 0:
        neighbours = model.space.neighbours(model.choices, best)
        model.prepare(neighbours, limits)
        moves = {a: rank(a) for a in neighbours}
        better = min(moves, key=lambda a: moves[a], default=best)
        if moves.get(better, least) >= least:
            break
        if limits.latency or limits.memory:  # which take milliseconds each: many changes at once save many rounds
            joined = _joined(model, best, {a: r for a, r in moves.items() if r < least})
            moves[joined] = rank(joined)
            better = min(better, joined, key=lambda a: moves[a])
        best, least = better, moves[better]
    return best


def _joined(model: CostModel, best: Architecture, moves: Mapping[Architecture, Rank]) -> Architecture:
    """`best` with all moves together that change different choices, the better of two that change the same."""
    taken: dict[str, str] = {}
    for move in sorted(moves, key=lambda a: moves[a]):
        changes = {label: option for label, option in move.items() if option != best[label]}
        if not changes.keys() & taken.keys():
            taken |= changes
    joined = model.space.canonical(model.choices, Architecture({**best, **taken}))
    try:
        model.space.check(model.choices, joined)
    except ArchitectureError:
        return best
    return joined


def _impossible(model: CostModel, limits: Limits, best: Architecture) -> str:
    for place, limit in enumerate(limits.all()):
        alone = _least(model, limits, lambda cost, i=place: cost[i], best) if limit else best  # type: ignore[misc]
        least = model.full(alone, limits)[place]
        if limit and least > limit:
            return _below(model.space, model.form, place, limit, least)
    cost, limited = model.full(best, limits), [place for place, limit in enumerate(limits.all()) if limit]
    parts = [_cost(place, cost[place]) for place in limited]
    return (
        f"The limits must leave an architecture of space {model.space.name!r}, but none was found that keeps "
        f"{'both' if len(parts) == 2 else 'all'}; the nearest one has {', '.join(parts[:-1])} and {parts[-1]}: raise a "
        "limit to that."
    )


def _below(space: Space, form: str, place: int, limit: float, least: float) -> str:
    form = f" {form}" if form else ""
    timed = place == _LATENCY
    wanted, enough = (in_seconds(limit), in_seconds(least)) if timed else (f"{limit:,}", f"{least}")
    found = f"{enough} of the fastest network found" if timed else f"{_cost(place, least)} of its smallest network"
    return (
        f"The limit must leave an architecture of space {space.name!r}, but {_OPTIONS[place]} {wanted} is below "
        f"the {found}{form}; give {enough} or more."
    )


def _cost(place: int, value: float) -> str:
    if place == _LATENCY:
        return f"a latency of {in_seconds(value)}"
    return f"{value:,} {('parameters', 'multiply-adds', '', 'bytes')[place]}"


def in_words(limits: Limits, cost: FullCost | None = None) -> str:
    """What is limited, and its limits or what a network costs of it: 1,000 parameters, a latency of 5ms."""
    values = limits.all() if cost is None else cost
    return ", ".join(_cost(i, values[i] or 0) for i, limit in enumerate(limits.all()) if limit)
