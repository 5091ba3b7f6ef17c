import pytest
import torch

from nasengine.alphas import Alphas, detached, entropy
from nasengine.architecture import Choice
from nasengine.seeding import generator

CHOICES = {
    choice.label: choice
    for choice in (
        Choice("normal/0", ("a", "b", "c")),
        Choice("reduce/0", ("a", "b", "c")),
        Choice("normal/1", ("a", "b", "c")),
        Choice("normal/2", ("a", "b")),
        Choice("block.1/x", ("a", "b")),
    )
}


def alphas(seed: int = 0, std: float = 1.0, dtype: torch.dtype = torch.float64) -> Alphas:
    return Alphas(CHOICES, generator(seed), std, like=torch.zeros((), dtype=dtype))


def test_groups_share_a_table() -> None:
    tables = dict(alphas().tables.items())
    assert {key: tuple(table.shape) for key, table in tables.items()} == {
        "normal-3": (2, 3),
        "reduce-3": (1, 3),
        "normal-2": (1, 2),
        "block_1-2": (1, 2),
    }


def test_rows_belong_to_their_choices() -> None:
    made = alphas()
    mixture = made.mixture("identity")
    assert mixture.keys() == CHOICES.keys()
    for label, place in (("normal/0", 0), ("normal/1", 1)):
        assert torch.equal(mixture[label], made.tables["normal-3"][place])
    assert torch.equal(mixture["reduce/0"], made.tables["reduce-3"][0])


def test_softmax() -> None:
    made = alphas()
    soft, raw = made.mixture("softmax"), made.mixture("identity")
    for label, row in soft.items():
        expected = raw[label].exp() / raw[label].exp().sum()
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("relaxation", ["softmax", "identity"])
def test_gradient_reaches_its_own_row_alone(relaxation: str) -> None:
    made = alphas()
    loss = (made.mixture(relaxation)["normal/1"] * torch.tensor([1.0, 2.0, 3.0])).sum()
    gradients = torch.autograd.grad(loss, list(made.parameters()), materialize_grads=True)
    touched = {
        key: gradient.ne(0).any(-1).tolist() for key, gradient in zip(made.tables.keys(), gradients, strict=True)
    }
    assert touched == {"normal-3": [False, True], "reduce-3": [False], "normal-2": [False], "block_1-2": [False]}


def test_start() -> None:
    numbers = torch.cat([p.flatten() for p in alphas(std=1.0).parameters()])
    scaled = torch.cat([p.flatten() for p in alphas(std=1e-3).parameters()])
    torch.testing.assert_close(scaled, numbers * 1e-3)
    assert all((p == 0).all() for p in alphas(std=0.0).parameters())
    assert all(p.dtype == torch.float32 for p in alphas(dtype=torch.float32).parameters())

    many = {f"x/{place}": Choice(f"x/{place}", tuple("abcdefgh")) for place in range(500)}
    table = Alphas(many, generator(0), 2.0, like=torch.zeros(())).tables["x-8"]
    assert abs(float(table.detach().mean())) < 0.1
    assert float(table.detach().std()) == pytest.approx(2.0, rel=0.05)


def test_start_depends_on_the_generator_alone() -> None:
    torch.manual_seed(0)
    one = alphas(3).mixture("identity")
    torch.manual_seed(1)
    same, other = alphas(3).mixture("identity"), alphas(4).mixture("identity")
    assert all(torch.equal(one[label], same[label]) for label in CHOICES)
    assert not any(torch.equal(one[label], other[label]) for label in CHOICES)


def test_detached() -> None:
    mixture = alphas().mixture("softmax")
    free = detached(mixture)
    assert all(row.requires_grad for row in mixture.values())
    assert not any(row.requires_grad for row in free.values())
    assert all(torch.equal(free[label], mixture[label]) for label in CHOICES)


def test_entropy() -> None:
    uniform = {"a": torch.full((8,), 1 / 8), "b": torch.full((2,), 1 / 2)}
    decided = {"a": torch.tensor([0.0, 1.0, 0.0])}
    assert entropy(uniform) == pytest.approx(1.0, abs=1e-6)
    assert entropy(decided) == 0.0
    assert entropy({**decided, "b": torch.full((2,), 1 / 2)}) == pytest.approx(0.5, abs=1e-6)
    assert entropy({"only": torch.ones(1)}) == 0.0


def test_entropy_of_weights_that_are_no_distribution() -> None:
    assert entropy({"a": torch.tensor([-2.0, 2.0])}) == pytest.approx(1.0)
    assert entropy({"a": torch.tensor([0.0, -3.0])}) == entropy({"a": torch.zeros(2)}) == 0.0
