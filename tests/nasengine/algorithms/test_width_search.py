"""Widths by gates in DARTS and RARTS: the hypergradient of the gates, their penalty, and the network they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import nasengine
from nasengine.algorithm import Algorithm, AlphaSettings, WeightSettings
from nasengine.algorithms.darts import DARTS, DARTSState
from nasengine.algorithms.rarts import RARTS, RARTSState
from nasengine.alphas import detached
from nasengine.config import SearchSettings
from nasengine.errors import SettingError
from nasengine.gates import GateSettings
from nasengine.penalties import Penalty, Sparsity
from nasengine.searching import SearchJob
from nasengine.seeding import generator
from nasengine.supernet import Gates, Mixture, Supernet
from nasengine.testing import Solvable, check_algorithm, run_steps, sized, smooth
from search_spaces.transformer import Transformer
from tests.nasengine.elastic_spaces import UNITS, hidden, weights_of
from tests.nasengine.tasks import image_task

GATED = ("width", "block1/hidden", "block2/hidden")
RATE = 0.2
PLAIN = WeightSettings(lr=RATE, lr_min=RATE, momentum=0.0, weight_decay=0.0, clip=0.0)
ALPHAS = AlphaSettings(optimizer="sgd", lr=0.1, weight_decay=0.0, std=0.5)


def gate_settings(lr: float = 1.0, weight: float = 0.0, remove: float = 0.4, by: str = "subgradient") -> GateSettings:
    sparsity = Sparsity(by=by, penalty=Penalty(weight=weight))  # type: ignore[arg-type]
    return GateSettings(lr=lr, remove=remove, sparsity=sparsity)


def darts(order: str = "first", **settings: Any) -> DARTS:
    return DARTS(order=order, widths="gates", weights=PLAIN, alphas=ALPHAS, gates=gate_settings(**settings))  # type: ignore[arg-type]


def rarts(sweep: str = "exact", **settings: Any) -> RARTS:
    gates = gate_settings(**settings)
    return RARTS(sweep=sweep, lam=0.7, beta=0.3, widths="gates", weights=PLAIN, alphas=ALPHAS, gates=gates)  # type: ignore[arg-type]


def scatter(state: DARTSState | RARTSState, seed: int = 0) -> list[Tensor]:
    """Gates between 0.5 and 1.5; returns a copy."""
    rng = generator(seed, 9)
    for value in state.gates.values:
        value.data = 0.5 + torch.rand(len(value), generator=rng, dtype=torch.float64)
    return [value.detach().clone() for value in state.gates.values]


def loss_at(
    supernet: Supernet, batch: nasengine.Batch, alphas: Mixture, gates: list[Tensor], weights: dict[str, Tensor]
) -> Tensor:
    mixture = {**alphas, **{label: Gates(gate) for label, gate in zip(GATED, gates, strict=True)}}
    return supernet.evaluate(batch, mixture, weights).loss


# The gradient of the gates in DARTS


def objective(model: Solvable, alphas: Mixture, gates: list[Tensor], ahead: bool) -> float:
    """L_val at the weights, or at those after one step of descent on L_train."""
    weights = weights_of(model.supernet)
    if ahead:
        loss = loss_at(model.supernet, model.train, alphas, gates, weights)
        slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        weights = {name: w - RATE * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
    return float(loss_at(model.supernet, model.valid, alphas, gates, weights).detach())


def differences(function: Callable[[list[Tensor]], float], gates: list[Tensor], step: float = 1e-5) -> list[Tensor]:
    """Central differences of a function of the gates."""
    slopes = []
    for place, gate in enumerate(gates):
        slope = torch.zeros_like(gate)
        for unit in range(len(gate)):
            ends = []
            for sign in (1, -1):
                moved = [value.clone() for value in gates]
                moved[place][unit] += sign * step
                ends.append(function(moved))
            slope[unit] = (ends[0] - ends[1]) / (2 * step)
        slopes.append(slope)
    return slopes


@pytest.mark.parametrize(("order", "tolerance"), [("first", 1e-7), ("second", 1e-3), ("exact", 1e-7)])
def test_gates_descend_on_the_hypergradient(order: str, tolerance: float) -> None:
    model, algorithm = sized(), darts(order)
    state = algorithm.init(model.supernet, generator(0), 10)
    before = scatter(state)
    alphas = detached(state.alphas.mixture("softmax"))
    expected = differences(lambda gates: objective(model, alphas, gates, order != "first"), before)
    run_steps(algorithm, state, model, 1)
    moved = torch.cat([old - new.detach() for old, new in zip(before, state.gates.values, strict=True)])
    torch.testing.assert_close(moved, torch.cat(expected), rtol=0, atol=tolerance * float(moved.abs().max()))
    assert len(moved) == 12 and (moved != 0).all()


def test_looking_ahead_matters() -> None:
    """The orders differ on the model of the test above: it could not pass with the wrong one."""
    ends = []
    for order in ("first", "exact"):
        model, algorithm = sized(), darts(order)
        state = algorithm.init(model.supernet, generator(0), 10)
        before = scatter(state)
        run_steps(algorithm, state, model, 1)
        ends.append(torch.cat([old - new.detach() for old, new in zip(before, state.gates.values, strict=True)]))
    assert (ends[0] - ends[1]).abs().max() > 0.01 * ends[0].abs().max()


def test_weights_descend_under_the_new_gates_and_alphas() -> None:
    model, other, algorithm = sized(), sized(), darts()
    state = algorithm.init(model.supernet, generator(0), 10)
    scatter(state)
    run_steps(algorithm, state, model, 1)
    weights = weights_of(other.supernet)
    gates, alphas = [value.detach() for value in state.gates.values], detached(state.alphas.mixture("softmax"))
    loss = loss_at(other.supernet, model.train, alphas, gates, weights)
    slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        new = model.supernet.get_parameter(name).detach()
        torch.testing.assert_close(new, (weight - RATE * slope).detach(), rtol=1e-10, atol=1e-12)


# The sweep of RARTS


def slopes_of(
    copy: Supernet, batch: nasengine.Batch, alphas: Sequence[Tensor], tables: Callable[[], Mixture], gates: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of a copy's loss by its weights, by the tables of the alphas and by the gates."""
    weights = weights_of(copy)
    loss = loss_at(copy, batch, tables(), gates, weights)
    slopes = torch.autograd.grad(loss, [*weights.values(), *alphas, *gates], materialize_grads=True)
    first, second = len(weights), len(weights) + len(alphas)
    return list(slopes[:first]), list(slopes[first:second]), list(slopes[second:])


@pytest.mark.parametrize("sweep", ["exact", "stale"])
def test_a_sweep_written_out(sweep: str) -> None:
    """w, y at the new w, then alphas and gates: by new gradients, or by those that moved w and y."""
    model, algorithm = sized(), rarts(sweep, lr=0.5, weight=0.02)
    state = algorithm.init(model.supernet, generator(0), 10)
    run_steps(algorithm, state, model, 1)  # so that the copies differ
    gates = [gate.requires_grad_() for gate in scatter(state)]
    tables = list(state.alphas.parameters())

    def mixture() -> Mixture:
        return state.alphas.mixture("softmax")

    w, y = state.train_copy, state.valid_copy
    old_w, old_y = ([p.detach().clone() for p in copy.parameters()] for copy in (w, y))
    g_w, a_train, s_train = slopes_of(w, model.train, tables, mixture, gates)
    g_y, a_valid, s_valid = slopes_of(y, model.valid, tables, mixture, gates)
    new_w = [a - RATE * (0.7 * g + 0.3 * (a - b)) for a, b, g in zip(old_w, old_y, g_w, strict=True)]
    new_y = [b - RATE * (g + 0.3 * (b - a)) for a, b, g in zip(new_w, old_y, g_y, strict=True)]
    if sweep == "exact":
        for copy, moved in ((w, new_w), (y, new_y)):
            for parameter, value in zip(copy.parameters(), moved, strict=True):
                parameter.data.copy_(value)
        _, a_train, s_train = slopes_of(w, model.train, tables, mixture, gates)
        _, a_valid, s_valid = slopes_of(y, model.valid, tables, mixture, gates)
        for copy, moved in ((w, old_w), (y, old_y)):
            for parameter, value in zip(copy.parameters(), moved, strict=True):
                parameter.data.copy_(value)
    new_tables = [t.detach() - 0.1 * (0.7 * a + b) for t, a, b in zip(tables, a_train, a_valid, strict=True)]
    pulls = [0.7 * a + b + 0.02 * gate.sign() for gate, a, b in zip(gates, s_train, s_valid, strict=True)]
    new_gates = [(gate - 0.5 * pull).detach() for gate, pull in zip(gates, pulls, strict=True)]

    run_steps(algorithm, state, model, 1)
    found = [*w.parameters(), *y.parameters(), *state.alphas.parameters(), *state.gates.values]
    for ours, expected in zip(found, [*new_w, *new_y, *new_tables, *new_gates], strict=True):
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("by", ["subgradient", "splitting"])
def test_the_lagrangian_has_the_penalty_and_the_price(by: str) -> None:
    model, algorithm = sized(), rarts(lr=0.05, weight=0.2, by=by)
    state = algorithm.init(model.supernet, generator(0), 10)
    run_steps(algorithm, state, model, 2)
    gates = [value.detach() for value in state.gates.values]
    alphas = detached(state.alphas.mixture("softmax"))
    w, y = state.train_copy, state.valid_copy
    expected = 0.7 * loss_at(w, model.train, alphas, gates, dict(w.named_parameters()))
    expected = expected + loss_at(y, model.valid, alphas, gates, dict(y.named_parameters()))
    pairs = zip(w.parameters(), y.parameters(), strict=True)
    expected = expected + 0.3 / 2 * sum(float((a - b).detach().square().sum()) for a, b in pairs)
    for gate in gates:
        u = (gate - 0.2).clamp(min=0) if by == "splitting" else gate
        expected = expected + 0.2 * u.sum() + 0.5 * (gate - u).square().sum()
    torch.testing.assert_close(algorithm.lagrangian(state, model.train, model.valid), expected.detach())
    state.train_copy.price = lambda mixture: torch.tensor(2.5) * len(mixture)
    priced = algorithm.lagrangian(state, model.train, model.valid)
    torch.testing.assert_close(priced, expected.detach() + 2.5 * 7)


@pytest.mark.parametrize("by", ["subgradient", "proximal", "splitting", "palm"])
def test_the_lagrangian_falls(by: str) -> None:
    model = sized()
    weights = WeightSettings(lr=0.05, lr_min=0.05, momentum=0.0, weight_decay=0.0, clip=0.0)
    gates = gate_settings(lr=0.02, weight=0.05, by=by)
    algorithm = RARTS(widths="gates", weights=weights, alphas=ALPHAS, gates=gates)
    state = algorithm.init(model.supernet, generator(0), 30)
    values = []
    for _ in range(30):
        values.append(float(algorithm.lagrangian(state, model.train, model.valid)))
        run_steps(algorithm, state, model, 1)
    assert all(after < before for before, after in pairwise(values))


# The penalty, the derived widths, the sculpted network


@pytest.mark.parametrize("make", [darts, rarts])
@pytest.mark.parametrize("order", [0, 1])
def test_the_penalty_moves_the_gates_and_nothing_else(make: Callable[..., Algorithm[Any]], order: int) -> None:
    kind = {darts: ("first", "exact"), rarts: ("exact", "stale")}[make][order]
    ends = []
    for weight in (0.0, 0.3):
        model, algorithm = sized(), make(kind, lr=0.1, weight=weight)
        state = algorithm.init(model.supernet, generator(0), 10)
        scatter(state)
        run_steps(algorithm, state, model, 1)
        ends.append([[v.detach() for v in state.gates.values], [v.detach() for v in state.alphas.parameters()]])
    for plain, penalised in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(plain - penalised, torch.full_like(plain, 0.1 * 0.3))
    assert all(torch.equal(plain, other) for plain, other in zip(ends[0][1], ends[1][1], strict=True))


@pytest.mark.parametrize("make", [darts, rarts])
def test_one_ranking_decides_all_widths_and_the_alphas_the_rest(make: Callable[..., Algorithm[Any]]) -> None:
    model, algorithm = sized(space=UNITS), make(remove=0.5)
    state = algorithm.init(model.supernet, generator(0), 10)
    rows = ([-4.0, 3.0, 2.0, 5.0], [0.1, 0.2, 0.3, 6.0], [0.7, -0.6, 0.5, -7.0])
    for value, row in zip(state.gates.values, rows, strict=True):
        value.data = torch.tensor(row, dtype=torch.float64)
    alphas = state.alphas.mixture("softmax")
    assert set(alphas) == set(model.supernet.choices) - set(GATED)
    likeliest = {label: model.supernet.choices[label].options[int(row.argmax())] for label, row in alphas.items()}
    likeliest |= {"width": "4", "block1/hidden": "1", "block2/hidden": "1"}
    expected = model.supernet.space.canonical(model.supernet.choices, nasengine.Architecture(likeliest))
    assert algorithm.derive(state) == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [darts, rarts])
def test_the_sculpted_network_computes_what_the_gated_one_does(
    make: Callable[..., Algorithm[Any]], training: bool
) -> None:
    model, algorithm = sized(), make(lr=0.3, weight=0.1)
    state = algorithm.init(model.supernet, generator(0), 10)
    run_steps(algorithm, state, model, 2)
    scatter(state)
    gated = {**detached(state.alphas.mixture("softmax")), **state.gates.mixture()}
    expected = model.supernet.train(training)(model.valid.inputs, gated)
    sculpted = algorithm.supernet(state).train(training)
    outputs = sculpted(model.valid.inputs, algorithm.mixture(state))
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    largest = {label: len(model.supernet.choices[label].options) - 1 for label in GATED}
    assert {label: algorithm.mixture(state)[label] for label in GATED} == largest


@pytest.mark.parametrize("make", [darts, rarts])
def test_without_gates_the_sculpted_network_is_the_trained_one(make: Callable[..., Algorithm[Any]]) -> None:
    model, algorithm = smooth(), make()
    state = algorithm.init(model.supernet, generator(0), 10)
    run_steps(algorithm, state, model, 1)
    assert algorithm.supernet(state) is model.supernet
    assert not list(state.gates.parameters())


def test_where_gates_decide_everything_there_are_no_alphas() -> None:
    algorithms: tuple[Algorithm[Any], ...] = (darts(lr=0.1), rarts(lr=0.1))
    for algorithm in algorithms:
        model = hidden()
        state = algorithm.init(model.supernet, generator(0), 10)
        run_steps(algorithm, state, model, 2)
        assert not list(state.alphas.parameters())
        assert (state.gates.values[0] != 1).all()
        assert list(algorithm.mixture(state)) == ["hidden"]


@pytest.mark.parametrize(
    "algorithm",
    [
        DARTS(widths="gates"),
        DARTS(widths="gates", order="exact", gates=gate_settings(lr=0.1, weight=0.1, by="palm")),
        RARTS(widths="gates", gates=gate_settings(lr=0.1, weight=0.1, by="splitting")),
        RARTS(widths="gates", sweep="stale"),
    ],
    ids=lambda algorithm: f"{algorithm.name} {algorithm.gates.sparsity.by}",
)
def test_laws(algorithm: Algorithm[Any]) -> None:
    check_algorithm(algorithm)


# In a search


@pytest.mark.parametrize("algorithm", [DARTS(widths="gates"), RARTS(widths="gates")], ids=["darts", "rarts"])
def test_copies_of_a_supernet_share_the_price_and_not_the_data(algorithm: Algorithm[Any]) -> None:
    space = Transformer(embedding=8, heads=2, depth=1, mlp=8, patch=2)
    job = SearchJob(space, algorithm, image_task(), SearchSettings(max_params=700, epochs=1, batch_size=8))
    supernet = job.algorithm.supernet(job.state)
    original = getattr(job.state, "supernet", None) or job.state.train_copy
    assert supernet is not original
    assert supernet.price is original.price is not None
    if isinstance(job.state, RARTSState):
        assert job.state.valid_copy.price is original.price


@pytest.mark.parametrize("kind", ["lp", "mcp", "scad"])
def test_a_penalty_that_needs_a_shape_says_which(kind: Literal["lp", "mcp", "scad"]) -> None:
    name = "algo.gates.sparsity.penalty"
    message = rf"{name}\.a must be .* for {kind}, but got 1\.0; set (0\.5|10000), say"
    with pytest.raises(SettingError, match=message) as caught:
        nasengine.search(settings=[f"{name}.kind={kind}"])
    value = str(caught.value).partition("set ")[2].partition(",")[0]
    with pytest.raises(SettingError, match=r"algo\.widths must be options or gates"):
        nasengine.search(settings=[f"{name}.kind={kind}", f"{name}.a={value}", "algo.widths=neither"])


@pytest.mark.parametrize("order", ["second", "exact"])
def test_looking_ahead_needs_plain_momentum(order: str) -> None:
    with pytest.raises(SettingError, match=r"without Nesterov's momentum, .* set it to false, or algo\.order=first"):
        DARTS(order=order, weights=WeightSettings(nesterov=True))  # type: ignore[arg-type]
    DARTS(weights=WeightSettings(nesterov=True))
