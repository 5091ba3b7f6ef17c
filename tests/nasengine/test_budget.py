from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasengine.algorithm import Algorithm, AlphaSettings
from nasengine.algorithms.darts import DARTS as DARTSearch
from nasengine.algorithms.rarts import RARTS
from nasengine.architecture import Architecture, Choice
from nasengine.budget import Cost, CostModel, Limits
from nasengine.cost import parameters
from nasengine.elastic import ElasticDepth, ElasticResolution, Size
from nasengine.errors import ArchitectureError, LimitError
from nasengine.layers import ElasticLinear
from nasengine.seeding import generator
from nasengine.space import Space
from nasengine.supernet import Decision, Gates, MixedOp, Mixture, fix
from nasengine.task import Shapes
from nasengine.testing import SizedSpace, Solvable, check_cost, run_steps, sized, smooth
from search_spaces.darts import DARTS

SHAPES = Shapes((4,), 3)
SIZED, SIGNALS = SizedSpace(), Shapes((2, 5), 3)
FAST = AlphaSettings(lr=0.1)


def every(choices: Mapping[str, Choice]) -> Iterator[Architecture]:
    """One option of every choice, in all ways."""
    for options in itertools.product(*(choice.options for choice in choices.values())):
        yield Architecture(dict(zip(choices, options, strict=True)))


def random_mixture(choices: Mapping[str, Choice], seed: int) -> dict[str, Tensor]:
    rng = generator(seed)
    return {label: torch.rand(len(c.options), generator=rng).double().softmax(0) for label, c in choices.items()}


# Exact costs


@dataclass(frozen=True, kw_only=True)
class Plain(Space):
    """A hidden layer of elastic width that is used twice, then one of three operations."""

    def network(self, shapes: Shapes) -> nn.Module:
        width = Size("width", (2, 5))
        same = ElasticLinear(width, width)
        options = {"dense": nn.Linear(3, 3), "none": nn.Identity(), "narrow": nn.Linear(3, 3, bias=False)}
        first, last = ElasticLinear(4, width), ElasticLinear(width, 3, bias=False)
        return nn.Sequential(first, same, nn.Sequential(nn.Tanh(), same), last, MixedOp("end", options))


@pytest.mark.parametrize(
    ("architecture", "weights", "multiply_adds"),
    [
        ("width=2 end=dense", 4 * 2 + 2 + 2 * 2 + 2 + 2 * 3 + 9 + 3, 4 * 2 + 2 * 2 * 2 + 2 * 3 + 9),
        ("width=5 end=narrow", 4 * 5 + 5 + 5 * 5 + 5 + 5 * 3 + 9, 4 * 5 + 2 * 5 * 5 + 5 * 3 + 9),
        ("width=5 end=none", 4 * 5 + 5 + 5 * 5 + 5 + 5 * 3, 4 * 5 + 2 * 5 * 5 + 5 * 3),
    ],
)
def test_costs_counted_by_hand(architecture: str, weights: int, multiply_adds: int) -> None:
    model = CostModel(Plain(), SHAPES)
    assert model.of(Architecture.parse(architecture)) == Cost(weights, multiply_adds)
    check_cost(Plain(), SHAPES)


class Tied(nn.Module):
    """Choices inside choices, weights in two places, products outside layers, and a head that does not count."""

    def __init__(self) -> None:
        super().__init__()
        width, other = Size("width", (2, 3, 4)), Size("other", (1, 4))
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        same = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        deep = ElasticDepth("depth", [same, self.first, same, same])
        wide = nn.Sequential(ElasticLinear(4, width), ElasticLinear(width, other), ElasticLinear(other, 4))
        self.kind = MixedOp("kind", {"deep": deep, "wide": wide, "first": self.first, "skip": nn.Identity()})
        self.again = MixedOp("again", {"skip": nn.Identity(), "kind": self.kind})
        self.auxiliary = nn.Linear(4, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tied(self.again(self.kind(x)))
        if self.training:
            self.auxiliary(y)
        product: Tensor = y.mT @ y
        return product[:, :3]


@dataclass(frozen=True, kw_only=True)
class TiedSpace(Space):
    def network(self, shapes: Shapes) -> nn.Module:
        return Tied()


def test_choices_in_choices_and_weights_in_two_places() -> None:
    model, choices = CostModel(TiedSpace(), SHAPES), TiedSpace().choices(SHAPES)
    for architecture in every(choices):
        network = fix(Tied(), architecture, inherit=False)
        own = {id(p): p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary")}
        assert model.of(architecture).parameters == sum(own.values())
    check_cost(TiedSpace(), SHAPES)


@dataclass(frozen=True, kw_only=True)
class Pixels(Space):
    """Images at two resolutions, with a choice of kernels and a layer after the pooling."""

    def network(self, shapes: Shapes) -> nn.Module:
        kernels = {str(k): nn.Conv2d(1, 2, k, padding=k // 2) for k in (1, 3)}
        tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, shapes.outputs))
        return ElasticResolution("pixels", (4, 8), nn.Sequential(MixedOp("kernel", kernels), *tail))


def test_resolution_multiplies_the_work_on_pixels_alone() -> None:
    model = CostModel(Pixels(), Shapes((1, 8, 8), 3))
    found = [model.of(Architecture({"pixels": p, "kernel": k})).multiply_adds for p in "48" for k in "13"]
    assert found == [16 * 2 + 6, 16 * 18 + 6, 64 * 2 + 6, 64 * 18 + 6]
    check_cost(Pixels(), Shapes((1, 8, 8), 3))


def test_the_cost_is_that_of_the_final_form() -> None:
    space, shapes = DARTS(channels=2, layers=3, nodes=1), Shapes((1, 8, 8), 4)
    architecture = space.largest(space.choices())
    with torch.device("meta"):
        final = space.final().build(architecture, shapes)
    assert CostModel(space.final(), shapes).of(architecture).parameters == parameters(final) > 100_000


# Expected costs


def test_expected_is_the_mean_over_all_architectures() -> None:
    model = CostModel(SIZED, SIGNALS)
    for seed in range(3):
        mixture, total = random_mixture(model.choices, seed), torch.zeros(2, dtype=torch.float64)
        for architecture in every(model.choices):
            places = {label: c.options.index(architecture[label]) for label, c in model.choices.items()}
            share = math.prod(float(mixture[label][place]) for label, place in places.items())
            total += share * torch.tensor(model.of(architecture)).double()
        for number, mean in zip(model.expected(mixture), total.tolist(), strict=True):
            assert float(number) == pytest.approx(mean, rel=1e-12)


def test_a_shared_label_has_the_mean_of_the_square() -> None:
    model = CostModel(Plain(), SHAPES)
    mixture: Mixture = {"width": torch.tensor([0.5, 0.5]).double(), "end": 1}
    mean, square = (2 + 5) / 2, (4 + 25) / 2
    weights, multiply_adds = model.expected(mixture)
    assert float(weights) == pytest.approx(5 * mean + square + mean + 3 * mean)
    assert float(multiply_adds) == pytest.approx(4 * mean + 2 * square + 3 * mean)


def test_mixtures_of_all_kinds() -> None:
    model = CostModel(Plain(), SHAPES)
    hard, wide = model.expected({"width": 0, "end": 0}), model.expected({"width": 1, "end": 0})
    assert hard == model.of(Architecture.parse("width=2 end=dense"))
    assert model.expected({"width": Gates(torch.rand(5)), "end": 0}) == wide
    soft = {"width": torch.tensor([0.0, 1.0]), "end": torch.tensor([1.0, 0.0, 0.0])}
    assert [float(number) for number in model.expected(soft)] == list(wide)


def test_the_gradient_is_the_central_difference() -> None:
    model = CostModel(SIZED, SIGNALS)
    mixture = {label: row.requires_grad_() for label, row in random_mixture(model.choices, 0).items()}
    fixed = {label: row.detach() for label, row in mixture.items()}
    for place in range(2):
        number = model.expected(mixture)[place]
        assert isinstance(number, Tensor)
        gradients = torch.autograd.grad(number, list(mixture.values()), materialize_grads=True)
        for (label, row), gradient in zip(mixture.items(), gradients, strict=True):
            for option in range(len(row)):
                step = torch.eye(len(row)).double()[option]
                ends = [{**fixed, label: fixed[label] + sign * step} for sign in (0.5, -0.5)]
                ahead, behind = (float(model.expected(end)[place]) for end in ends)
                assert float(gradient[option]) == pytest.approx(ahead - behind, rel=1e-9)


# Limits


def test_excess_is_the_sum_of_the_shares_above_the_limits() -> None:
    assert not Limits() and Limits(1) and Limits(None, 1)
    assert Limits().excess((10, 10)) == 0
    assert Limits(10).excess((10, 99)) == 0 and Limits(10).excess((15, 99)) == 0.5
    assert Limits(10, 20).excess((15, 50)) == pytest.approx(2.0) and Limits(10, 20).excess((5, 50)) == 1.5


def test_the_gradient_of_the_excess_stops_at_the_limit() -> None:
    cost = torch.tensor([12.0, 12.0], requires_grad=True)
    excess = Limits(10, 20).excess(list(cost.unbind()))
    assert isinstance(excess, Tensor) and excess.item() == pytest.approx(0.2)
    assert torch.autograd.grad(excess, cost)[0].tolist() == pytest.approx([0.1, 0.0])


# The nearest architecture


def few(model: CostModel) -> list[Cost]:
    return [model.of(architecture) for architecture in every(model.choices)]


def test_nearest_keeps_one_limit_whenever_one_can_be_kept() -> None:
    for space, shapes in ((SIZED, SIGNALS), (Plain(), SHAPES), (TiedSpace(), SHAPES)):
        model = CostModel(space, shapes)
        costs = few(model)
        for place, field in enumerate(Cost._fields):
            least = min(cost[place] for cost in costs)
            found = model.nearest(Limits(**{field: least}))
            assert model.of(found)[place] == least
            space.check(model.choices, found)
            with pytest.raises(
                LimitError, match=rf"is below the {least:,} .* of its smallest network; give {least} or"
            ):
                model.nearest(Limits(**{field: least - 1}))


def test_nearest_keeps_both_limits_of_a_space_of_sizes() -> None:
    model = CostModel(SIZED, SIGNALS)
    for cost in few(model):
        assert model.excess(model.nearest(Limits(*cost)), Limits(*cost)) == 0


class Tables(CostModel):
    """Costs of a space of operations out of tables, where few weights may mean much work."""

    def __init__(self, edges: int, options: int, seed: int) -> None:
        self.space, rng = Operations(edges=edges, options=options), generator(seed)
        self.choices = self.space.choices(SHAPES)
        self.tables = {label: torch.randint(1, 100, (options, 2), generator=rng).tolist() for label in self.choices}

    def of(self, architecture: Architecture) -> Cost:
        rows = [self.tables[label][int(option[1:])] for label, option in architecture.items()]
        return Cost(*(sum(row[place] for row in rows) for place in range(2)))


@dataclass(frozen=True, kw_only=True)
class Operations(Space):
    edges: int = 1
    options: int = 1

    def network(self, shapes: Shapes) -> nn.Module:
        names = [f"o{place}" for place in range(self.options)]
        return nn.Sequential(*(MixedOp(f"e{e}", {n: nn.Identity() for n in names}) for e in range(self.edges)))


def test_nearest_keeps_two_limits_that_pull_two_ways_in_95_of_100_cases() -> None:
    found = []
    for seed in range(100):
        model, rng = Tables(4, 4, seed), generator(seed, 1)
        costs = few(model)
        lowest = [c for c in costs if not any(o != c and o[0] <= c[0] and o[1] <= c[1] for o in costs)]
        limits = Limits(*lowest[int(torch.randint(len(lowest), (), generator=rng))])
        try:
            assert model.excess(model.nearest(limits), limits) == 0
            found.append(True)
        except LimitError:
            found.append(False)
    assert sum(found) >= 95  # of the hardest limits there are: those that one network keeps, and barely


def test_two_limits_that_nothing_keeps_together() -> None:
    model = Tables(3, 4, seed=0)
    costs = few(model)
    limits = Limits(min(c.parameters for c in costs), min(c.multiply_adds for c in costs))
    assert min(limits.excess(cost) for cost in costs) > 0
    with pytest.raises(LimitError) as caught:
        model.nearest(limits)
    nearest = min(costs, key=limits.excess)
    assert str(caught.value) == (
        "The limits must leave an architecture of space '', but none was found that keeps both; the nearest one has "
        f"{nearest.parameters:,} parameters and {nearest.multiply_adds:,} multiply-adds: raise a limit to that."
    )
    model.nearest(Limits(*nearest))


def test_a_limit_that_nothing_keeps() -> None:
    space = DARTS(nodes=1)
    model = CostModel(space.final(), Shapes((1, 8, 8), 4), form=space.form(space.final()))
    told = "The limit must leave an architecture of space 'darts', but --max-flops 1,000 is below the "
    with pytest.raises(
        LimitError,
        match=rf"^{told}([\d,]+) multiply-adds of its smallest network as it is trained by default, "
        r"final.channels=36 .* \(another form by --set final\.NAME=VALUE\); give (\d+) or more\.$",
    ) as caught:
        model.nearest(Limits(None, 1000))
    least = int(str(caught.value).split()[-3])
    assert model.of(model.nearest(Limits(None, least))).multiply_adds == least


# The price of cost in a search


def excesses(algorithm: Algorithm[Any], model: Solvable, shapes: Shapes, weight: float) -> list[float]:
    """By which share the expected cost is above a limit before, during and after a search with a price on it."""
    costs = CostModel(model.supernet.space, shapes)
    sizes = [cost.parameters for cost in few(costs)]
    limits = Limits(min(sizes) + (max(sizes) - min(sizes)) // 10)
    model.supernet.price = lambda mixture: weight * limits.excess(costs.expected(mixture))
    state = algorithm.init(model.supernet, generator(0), 60)
    found = []
    for steps in (0, 10, 50):
        run_steps(algorithm, state, model, steps)
        found.append(float(limits.excess(costs.expected(algorithm.mixture(state)))))
    return found


@pytest.mark.parametrize(("toy", "shapes"), [(smooth, SHAPES), (sized, SIGNALS)])
@pytest.mark.parametrize("algorithm", [DARTSearch(alphas=FAST), RARTS(alphas=FAST)], ids=["darts", "rarts"])
def test_the_expected_cost_falls_to_the_limit(
    toy: Callable[[], Solvable], shapes: Shapes, algorithm: Algorithm[Any]
) -> None:
    free, priced = (excesses(algorithm, toy(), shapes, weight) for weight in (0.0, 10.0))
    assert free[0] == priced[0] > 0.2
    assert priced[1] < 0.8 * free[1] and priced[2] < 0.01


# What has no known cost


class Doubling(Decision):
    """A choice of a kind of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = (Choice("times", ("1", "2")),)

    def fixed(self, architecture: Architecture, inherit: bool) -> nn.Module:
        return nn.Identity()


def resolutions() -> nn.Module:
    return nn.Sequential(*(ElasticResolution(f"pixels{place}", (4, 8), nn.Identity()) for place in range(2)))


@dataclass(frozen=True, kw_only=True)
class Strange(Space):
    make: Callable[[], nn.Module]

    def network(self, shapes: Shapes) -> nn.Module:
        return self.make()


@pytest.mark.parametrize(
    ("make", "label", "kind"), [(Doubling, "times", "Doubling"), (resolutions, "pixels1", "ElasticResolution")]
)
def test_choices_of_a_kind_without_known_costs(make: Callable[[], nn.Module], label: str, kind: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        CostModel(Strange(make=make), SHAPES)
    assert str(caught.value) == (
        "Limits on cost need choices between operations, sizes and depths and at most one of a resolution, but "
        f"{label!r} is another one, of a {kind}; leave out the limits."
    )


class Products(nn.Module):
    """Attention written out: its products cost what no elastic layer knows."""

    def __init__(self) -> None:
        super().__init__()
        width = Size("width", (2, 5))
        self.q, self.k, self.head = ElasticLinear(4, width), ElasticLinear(4, width), ElasticLinear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 6, -1)
        return torch.as_tensor(self.head((self.q(x) @ self.k(x).mT).mean(1)))


@dataclass(frozen=True, kw_only=True)
class Outside(Space):
    name = "outside"

    def network(self, shapes: Shapes) -> nn.Module:
        return Products()


def test_work_on_sizes_outside_of_elastic_layers_is_told() -> None:
    counted, said = 2 * 6 * 4 * 2 + 36 * 2 + 18, 2 * 6 * 4 * 2 + 36 * 5 + 18
    with pytest.raises(ArchitectureError) as caught:
        CostModel(Outside(), SHAPES).check()
    assert str(caught.value) == (
        "Where costs are limited, all work on sizes must be done by elastic layers, but the smallest network of "
        f"'outside' has {counted} multiply-adds and its layers say {said}; take ElasticAttention and the like, or "
        "leave out the limits."
    )
