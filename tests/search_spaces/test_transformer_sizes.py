"""What the sizes of a transformer cost, and what gates on its units remove."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nasengine.algorithms.darts import DARTS
from nasengine.architecture import Architecture
from nasengine.budget import CostModel
from nasengine.cost import multiply_adds, parameters
from nasengine.gates import kept
from nasengine.seeding import generator
from nasengine.supernet import Gates, Supernet
from nasengine.task import Batch
from nasengine.units import fold, gateable, importance, order_by, permute
from search_spaces.transformer import Transformer
from tests.search_spaces.test_transformer import CIFAR, FINE, SMALL, images, largest, supernet


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_costs_are_those_of_the_derived_network(pooling: str) -> None:
    space = Transformer(embedding=24, heads=4, depth=3, pooling=pooling)  # type: ignore[arg-type]
    choices, rng, costs = space.choices(CIFAR), generator(0), CostModel(space, CIFAR)
    for architecture in (space.smallest(choices), *(space.sample(choices, rng) for _ in range(4))):
        with torch.device("meta"):
            network = space.build(architecture, CIFAR)
        assert costs.of(architecture) == (parameters(network), multiply_adds(lambda network=network: network, CIFAR))  # type: ignore[misc]


def test_a_block_has_the_complexity_of_its_formulas() -> None:
    """4 C d_a + 2 C d_m weights; n (4 C d_a + 2 C d_m) + 2 n^2 d_a multiply-adds, with n tokens of C features."""
    space, tokens = Transformer(embedding=48, heads=4, depth=3, options=0, pooling="class"), 65
    choices = space.choices(CIFAR)
    sizes = {"embedding": "40", "block3/heads": "3", "block3/width": "5", "block3/mlp": "70"}
    deep = Architecture({**largest(space, CIFAR), **sizes})
    networks = [space.build(a, CIFAR) for a in (deep, space.canonical(choices, deep.replace("depth", "2")))]
    attention, mlp = 3 * 5, 70
    matrices = 4 * 40 * attention + 2 * 40 * mlp
    block = networks[0].get_submodule("blocks.2")
    assert sum(p.numel() for p in block.parameters() if p.dim() == 2) == matrices
    biases_and_norms = 3 * attention + 40 + mlp + 40 + 4 * 40
    more, fewer = map(parameters, networks)
    assert more - fewer == matrices + biases_and_norms
    more, fewer = (multiply_adds(lambda n=n: n.to("meta"), CIFAR) for n in networks)  # type: ignore[misc]
    assert more - fewer == tokens * matrices + 2 * tokens**2 * attention


def test_removing_inner_units_alone_lowers_the_cost_in_proportion() -> None:
    space = Transformer(embedding=40, heads=4, width=10, depth=2, mlp=160, options=10, fixed="embedding,heads,depth")
    costs = CostModel(space, CIFAR)
    choices = space.choices(CIFAR)
    shares = [
        costs.of(Architecture({label: choice.options[place] for label, choice in choices.items()}))
        for place in range(10)
    ]
    for steps in zip(*shares, strict=True):
        assert len({after - before for before, after in pairwise(steps)}) == 1
    inner = 2 * (4 * 40 * 40 + 2 * 40 * 160)
    assert shares[9].parameters - shares[5].parameters == 0.4 * (inner + 2 * (3 * 40 + 160))
    assert shares[9].multiply_adds - shares[5].multiply_adds == 0.4 * (64 * inner + 2 * 2 * 64**2 * 40)


def test_gates_are_for_all_numbers_of_units() -> None:
    blocks = [f"block{place}/{name}" for place in (1, 2, 3) for name in ("heads", "width", "mlp")]
    assert set(gateable(supernet(SMALL))) == {"embedding", *blocks}
    fixed = Transformer(embedding=12, heads=3, depth=1, fixed="heads,embedding")
    assert set(gateable(supernet(fixed))) == {"block1/width", "block1/mlp"}


def random_gates(made: Supernet, dtype: torch.dtype) -> dict[str, Tensor]:
    rng, sizes = generator(7), gateable(made)
    return {label: torch.randn(size.largest, generator=rng, dtype=dtype) for label, size in sizes.items()}


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_gates_of_one_are_the_full_network(pooling: str) -> None:
    space = Transformer(embedding=12, heads=3, depth=2, pooling=pooling)  # type: ignore[arg-type]
    made, inputs = supernet(space), images()
    full = made.hard(largest(space))
    ones = {label: Gates(torch.ones(size.largest, dtype=torch.float64)) for label, size in gateable(made).items()}
    torch.testing.assert_close(made(inputs, {**full, **ones}), made(inputs, full), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("remove", [0.2, 0.4])
def test_what_one_ranking_removes_is_gone_without_a_trace(
    dtype: torch.dtype, tolerance: float, pooling: str, remove: float
) -> None:
    """Thresholded gates and the small network: the units sorted by |gate|, gates folded, then cut."""
    space = Transformer(embedding=12, heads=3, depth=3, mlp=20, options=0, pooling=pooling)  # type: ignore[arg-type]
    made, inputs = supernet(space, dtype=dtype), images(dtype=dtype)
    scores, sizes = random_gates(made, dtype), gateable(made)
    threshold = torch.cat([score.abs() for score in scores.values()]).sort().values
    least = threshold[int(remove * len(threshold))]
    gates = {label: torch.where(score.abs() >= least, score, 0.0) for label, score in scores.items()}
    small = {label: str(int((gate != 0).sum())) for label, gate in gates.items()}
    full = largest(space)
    assert all(option != "0" for option in small.values()) and small["embedding"] != full["embedding"]
    weights = kept({sizes[label]: score for label, score in scores.items()}, remove)
    assert {label: made.choices[label].options[int(row.argmax())] for label, row in weights.items()} == small

    masked = made(inputs, {**made.hard(full), **{label: Gates(gate) for label, gate in gates.items()}})
    sculpted = copy.deepcopy(made)
    permute(sculpted, {sizes[label]: order_by(gate.abs()) for label, gate in gates.items()})
    fold(sculpted, {sizes[label]: gate[order_by(gate.abs())] for label, gate in gates.items()})
    cut = sculpted.extract(Architecture({**full, **small}))
    assert parameters(cut) < (1 - remove) * parameters(made)
    torch.testing.assert_close(cut(inputs), masked, rtol=tolerance, atol=tolerance)


def test_sorting_by_importance_changes_no_output() -> None:
    made, inputs = supernet(SMALL), images()
    full = made.hard(largest(SMALL))
    before = made(inputs, full)
    orders = {size: order_by(importance(made, size)) for size in gateable(made).values()}
    assert any(not torch.equal(order, torch.arange(len(order))) for order in orders.values())
    permute(made, orders)
    torch.testing.assert_close(made(inputs, full), before, rtol=1e-10, atol=1e-10)


def test_darts_by_gates_finds_an_architecture() -> None:
    made = supernet(FINE, dtype=torch.float32)
    rng = generator(0)
    batches = [Batch(images(dtype=torch.float32), torch.randint(10, (4,), generator=rng)) for _ in range(2)]
    algorithm = DARTS(widths="gates")
    state = algorithm.init(made, rng, 2)
    for _ in range(2):
        algorithm.step(state, *batches)
    architecture = algorithm.derive(state)
    FINE.check(made.choices, architecture)
    network = algorithm.supernet(state).extract(architecture)
    assert parameters(network) < parameters(made)
