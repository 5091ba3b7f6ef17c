"""Gates: one trainable score per unit of a size, from which widths are found by one ranking over the whole network."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasengine.architecture import Architecture, Choice
from nasengine.elastic import Size
from nasengine.evolution import Budget, likeliest
from nasengine.layers import put
from nasengine.penalties import Sparsity
from nasengine.settings import group, setting, validate
from nasengine.supernet import Gates, Supernet
from nasengine.units import fold, gateable, order_by, permute

_STEP, _MOST = 0.01, 0.99
_ROUNDING = 1e-9  # 0.29 * 100 is less than 29 in floating point


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """How gates move, and what their ranking removes. Those of units start at 1; they descend without momentum."""

    lr: float = setting(1.0, "learning rate of the gates; their gradients are small", above=0)
    remove: float = setting(0.4, "share of all units that the ranking removes, besides those at zero", low=0, high=0.99)
    sparsity: Sparsity = group(Sparsity, "the penalty on the gates, and how they descend on it")

    def __post_init__(self) -> None:
        validate(self, "algo.gates")


class Scores(nn.Module):
    """Vectors of trained scores under a sparsity penalty, with its auxiliary tensors; plain gradient descent.

    Args:
        start: the vectors; none is allowed.
        settings: of their descent.
    """

    def __init__(self, start: Sequence[Tensor], settings: GateSettings) -> None:
        super().__init__()
        self.settings = settings
        self.values = nn.ParameterList([nn.Parameter(vector) for vector in start])
        for place, tensor in enumerate(settings.sparsity.start(start)):
            self.register_buffer(f"auxiliary{place}", tensor)

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """One step on loss and penalty."""
        sparsity, rate, auxiliary = self.settings.sparsity, self.settings.lr, list(self.buffers())
        values = list(self.values)
        for value, slope in zip(values, sparsity.gradient(values, gradients, auxiliary), strict=True):
            put(value, value - rate * slope)
        moved, following = sparsity.after(values, auxiliary, rate)
        for old, new in zip([*values, *auxiliary], [*moved, *following], strict=True):
            put(old, new)

    def deployed(self) -> list[Tensor]:
        """The scores of the network that is kept, without gradient."""
        return self.settings.sparsity.deployed(list(self.values), list(self.buffers()))

    def penalty(self) -> Tensor:
        """What they add to the objective, 0-dim, without gradient.

        The penalty on the scores, or on their sparse copies and beta / 2 times the squared distance to these.
        """
        sparsity, values = self.settings.sparsity, [value.detach() for value in self.values]
        copies = list(self.buffers()) or values
        terms = [sparsity.penalty.value(sparse).sum() for sparse in copies]
        terms += [sparsity.beta / 2 * (v - u).square().sum() for v, u in zip(values, copies, strict=True)]
        return torch.stack(terms).sum() if terms else torch.zeros(())


class UnitGates(Scores):
    """One gate a unit of some sizes, 1 at the start.

    Args:
        sizes: by label; none for a search without gates.
        settings: of their descent.
        like: gives dtype and device.
    """

    def __init__(self, sizes: Mapping[str, Size], settings: GateSettings, like: Tensor) -> None:
        super().__init__([like.new_ones(size.largest) for size in sizes.values()], settings)
        self.sizes = dict(sizes)

    def mixture(self) -> dict[str, Gates]:
        """The gates by label, for the mixture of a supernet call."""
        return {label: Gates(value) for label, value in zip(self.sizes, self.values, strict=True)}

    def whole(self) -> dict[str, int]:
        """The mixture of the same labels where the gates are folded into the weights: all units."""
        return {label: len(size.values) - 1 for label, size in self.sizes.items()}

    def by_size(self) -> dict[Size, Tensor]:
        """The gates of the network that is kept."""
        return dict(zip(self.sizes.values(), self.deployed(), strict=True))

    def sculpted(self, supernet: Supernet) -> Supernet:
        """A copy whose units stand by falling |gate|, with the gates folded into its weights; itself without gates."""
        if not self.sizes:
            return supernet
        gates = self.by_size()
        result = sort_units(supernet, gates)
        fold(result.network, {size: gate[order_by(gate.abs())] for size, gate in gates.items()})
        return result


class OptionGates(Scores):
    """One gate an option of the choices between operations (arXiv:1811.01567); about equal at the start.

    Args:
        choices: by label; sizes among them are left out.
        settings: of their descent.
        generator: draws the start, (1 + 0.001 N(0, 1)) / options.
        like: gives dtype and device.
    """

    def __init__(
        self, choices: Mapping[str, Choice], settings: GateSettings, generator: torch.Generator, like: Tensor
    ) -> None:
        found = {label: choice for label, choice in choices.items() if not choice.ordinal}
        counts = [len(choice.options) for choice in found.values()]
        noise = [torch.randn(count, generator=generator, dtype=torch.float64) for count in counts]
        super().__init__([((1 + 1e-3 * z) / len(z)).to(like) for z in noise], settings)
        self.labels = list(found)

    def mixture(self) -> dict[str, Tensor]:
        """The gates as weights over the options."""
        return dict(zip(self.labels, self.values, strict=True))

    def sizes(self) -> dict[str, Tensor]:
        """|gate| of the network that is kept, without gradient."""
        return {label: value.abs() for label, value in zip(self.labels, self.deployed(), strict=True)}


def gate_sizes(supernet: Supernet, wanted: bool) -> dict[str, Size]:
    """The sizes that gates can search, or none."""
    return gateable(supernet.network) if wanted else {}


def sort_units(supernet: Supernet, scores: Mapping[Size, Tensor]) -> Supernet:
    """A copy whose units stand by falling |score|, so that slices keep the best ones."""
    result = copy.deepcopy(supernet)
    permute(result.network, {size: order_by(score.abs()) for size, score in scores.items()})
    return result


def kept(scores: Mapping[Size, Tensor], remove: float) -> dict[str, Tensor]:
    """By label the weights (options,), all on the option that is nearest to what one global ranking keeps.

    Of all N units together the floor(remove * N) with the smallest |score| go, and those at zero (arXiv:1708.06519,
    section 3; of two options equally near the larger one). Where scores are equal, all sizes lose an equal share.
    """
    ranking = sorted(
        (score, -(place + 1) / size.largest, size.label)
        for size, vector in scores.items()
        for place, score in enumerate(vector.abs().sort(descending=True).values.tolist())
    )
    count = math.floor(remove * len(ranking) + _ROUNDING)
    left = Counter(label for score, _, label in ranking[count:] if score > 0)
    result = {}
    for size, vector in scores.items():
        place = min(range(len(size.values)), key=lambda i: (abs(size.values[i] - left[size.label]), -i))
        result[size.label] = torch.eye(len(size.values), device=vector.device)[place]
    return result


def derive_widths(
    supernet: Supernet, alphas: Mapping[str, Tensor], gates: UnitGates, budget: Budget | None
) -> Architecture:
    """The architecture of alphas and gates."""
    return derive_scores(supernet, alphas, gates.by_size(), gates.settings.remove, budget)


def derive_scores(
    supernet: Supernet,
    alphas: Mapping[str, Tensor],
    scores: Mapping[Size, Tensor],
    remove: float,
    budget: Budget | None,
) -> Architecture:
    """The architecture of alphas and a ranking of scores; under limits the ranking removes as much more as they need.

    What neither decides is at its largest.
    """
    space, choices = supernet.space, supernet.choices
    largest = {label: torch.arange(1.0, len(choice.options) + 1).softmax(0) for label, choice in choices.items()}
    base = {**largest, **alphas}
    weights = {**base, **kept(scores, remove)}
    best = space.derive(choices, weights)
    while scores and budget is not None and not budget.allows(best) and remove < _MOST:
        remove = min(remove + _STEP, _MOST)
        weights = {**base, **kept(scores, remove)}
        best = space.derive(choices, weights)
    return likeliest(space, choices, weights, budget)
