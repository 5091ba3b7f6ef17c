from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine.algorithm import Algorithm
from nasengine.algorithms.darts import DARTS
from nasengine.algorithms.deps import DepS
from nasengine.algorithms.random_search import RandomSearch
from nasengine.algorithms.rarts import RARTS
from nasengine.algorithms.slimming import Slimming
from nasengine.cost import step_bytes
from nasengine.errors import DeviceMemoryError, SettingError
from nasengine.loop import seeded
from nasengine.microbatches import Division, exhausted, is_out_of_memory, micro_batches, outputs_of
from nasengine.seeding import generator
from nasengine.supernet import Shared, Supernet
from nasengine.task import Batch, Shapes
from search_spaces.transformer import Transformer
from tests.nasengine.calls import close, numbers
from tests.nasengine.test_supernet import SPACE, Times, mixed

CPU = torch.device("cpu")
SPLITS = pytest.mark.parametrize("count", [2, 3, 8])  # of 8 examples: 4 + 4, 3 + 3 + 2, single ones


def batches(count: int) -> list[Batch]:
    rng = generator(1)
    shape = (count, 1, 8, 8)
    return [
        Batch(torch.randn(shape, generator=rng, dtype=torch.float64), torch.randint(4, (count,), generator=rng))
        for _ in range(4)
    ]


def stepped(algorithm: Algorithm[Any], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """What two steps log, and the weights after them."""
    with seeded(0, 0):
        supernet = (
            Transformer(embedding=8, depth=2, heads=2, options=2, patch=4)
            .supernet(Shapes((1, 8, 8), 4), F.cross_entropy)
            .double()
        )
    state = algorithm.init(supernet, generator(3), 2)
    logged: list[Tensor] = []
    data = batches(8)
    with micro_batches(count):
        for step in range(2):
            logged += [x for x in algorithm.step(state, data[2 * step], data[2 * step + 1]) if x is not None]
    return logged, list(algorithm.supernet(state).parameters())


@SPLITS
@pytest.mark.parametrize(
    "algorithm",
    [
        *(DARTS(order="first"), DARTS(order="second"), DARTS(order="exact"), DARTS(widths="gates")),
        *(RARTS(), RARTS(sweep="stale"), Slimming(), RandomSearch(), DepS(warmup=0.5)),
    ],
    ids=["darts", "darts-second", "darts-exact", "darts-gates", "rarts", "rarts-stale", "slimming", "random", "deps"],
)
def test_without_batch_norms_a_step_is_the_undivided_one(algorithm: Algorithm[Any], count: int) -> None:
    for divided, whole in zip(stepped(algorithm, count), stepped(algorithm, 1), strict=True):
        for one, other in zip(divided, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


class Net(nn.Module):
    """A network with what may go wrong when a pass is run again; counts its passes."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*parts)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        output: Tensor = self.body(x)
        return output


def normed() -> Net:
    torch.manual_seed(0)
    return Net(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()


@pytest.mark.parametrize(("count", "sizes"), [(2, [4, 4]), (3, [3, 3, 2]), (99, [1] * 8)])
def test_micro_batches_differ_by_one_at_most(count: int, sizes: list[int]) -> None:
    network = Net(nn.Linear(2, 2))
    with micro_batches(count):
        outputs = outputs_of(network, torch.ones(8, 2))
    assert network.sizes == sizes and outputs.shape == (8, 2)
    outputs.sum().backward()
    assert sorted(network.sizes) == sorted(2 * sizes)
    assert network.sizes[len(sizes) :] == sizes[::-1]  # one after the other: the last one is let go first


def test_batch_norms_take_each_micro_batch_and_statistics_move_once() -> None:
    x, targets, network = numbers(8, 2, 4, 4), torch.arange(8) % 3, normed()
    network(x[:1])
    other = copy.deepcopy(network)
    with micro_batches(3):
        loss = F.cross_entropy(outputs_of(network, x), targets)
    found = torch.autograd.grad(loss, list(network.parameters()))
    expected = F.cross_entropy(torch.cat([other(part) for part in (x[:3], x[3:6], x[6:])]), targets)
    close(loss, expected)
    for one, two in zip(found, torch.autograd.grad(expected, list(other.parameters())), strict=True):
        close(one, two)
    for name, buffer in other.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


def test_a_virtual_pass_leaves_no_trace() -> None:
    network = normed()
    network(numbers(8, 2, 4, 4))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weights = {name: weight.detach().requires_grad_() for name, weight in network.named_parameters()}
    with micro_batches(3):
        outputs_of(network, numbers(8, 2, 4, 4, seed=1), weights=weights).sum().backward()
    assert all(weight.grad is not None for weight in weights.values())
    assert all(weight.grad is None for weight in network.parameters())
    for name, buffer in network.named_buffers():
        assert torch.equal(before[name], buffer), name


def test_random_numbers_and_read_buffers_are_those_of_the_first_pass() -> None:
    torch.manual_seed(0)
    linear = nn.utils.spectral_norm(nn.Linear(5, 4))  # its buffers move at every pass, and are read
    network = Net(linear, nn.Dropout(0.5), nn.Linear(4, 1)).double()
    other, x = copy.deepcopy(network), numbers(8, 5)
    with seeded(1, 2), micro_batches(3):
        outputs = outputs_of(network, x)
        torch.rand(3)
        found = torch.autograd.grad(outputs.sum(), list(network.parameters()))
    with seeded(1, 2):
        expected = torch.cat([other(part) for part in (x[:3], x[3:6], x[6:])])
    close(outputs, expected)
    for one, two in zip(found, torch.autograd.grad(expected.sum(), list(other.parameters())), strict=True):
        close(one, two)
    for name, buffer in other.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


def test_outputs_may_be_two_and_need_no_gradient() -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    network, x = Two(3, 2), torch.randn(7, 3)
    with micro_batches(2), torch.no_grad():
        one, two = outputs_of(network, x)
    torch.testing.assert_close(one, network(x)[0])
    assert torch.equal(two, x) and not one.requires_grad


def test_a_step_takes_less_memory() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Sequential(nn.Linear(50, 50), nn.Sigmoid()) for _ in range(10)))
    x = torch.randn(400, 50)
    taken = []
    for count in (1, 2, 4, 8):
        with micro_batches(count):
            taken.append(step_bytes(lambda: outputs_of(network, x).sum().backward(), CPU))  # type: ignore[no-untyped-call]
        network.zero_grad()
    fixed = sum(weight.nbytes for weight in network.parameters()) + 2 * x.nbytes  # gradients; the outputs, and theirs
    assert all(
        fixed + (taken[0] - fixed) / count * 1.3 > found for count, found in zip((2, 4, 8), taken[1:], strict=True)
    )


# How many


def taken(fixed: int, each: int, asked: list[tuple[int, int]]) -> Callable[[int, int], int]:
    def step(examples: int, count: int) -> int:
        asked.append((examples, count))
        return fixed + each * -(-examples // count)

    return step


@pytest.mark.parametrize(
    ("limit", "count"), [(10_000, 1), (7_800, 1), (7_000, 2), (4_000, 3), (3_000, 4), (1_500, 14), (1_200, 32)]
)
def test_divided_as_little_as_the_limit_allows(limit: int, count: int) -> None:
    asked: list[tuple[int, int]] = []
    division = Division(64, 32, norms=True)
    division.fit(limit, taken(1000, 100, asked))
    assert division.count == count and 1000 + 100 * -(-64 // count) <= limit
    assert all(1000 + 100 * -(-examples // parts) <= max(limit, 1800) for examples, parts in asked)  # no trial is large


def test_a_guess_that_is_too_low_is_corrected() -> None:
    def step(examples: int, count: int) -> int:
        return 1000 + (100 if examples < 64 else 300) * examples // count

    division = Division(64, 64)
    division.fit(5_000, step)
    assert division.count == 5 and step(64, 5) <= 5_000 < step(64, 2)  # guessed 2, then 4
    assert step(64, 4) > 5_000


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (1_100, "--step-memory 1,100 is below the 1,200 bytes that micro-batches of 2 would take; give more than 1200"),
        (1_250, "is below the 1,500 bytes that a step of 8 in 4 micro-batches would take; give more than 1500"),
    ],
)
def test_a_limit_that_is_too_small_is_refused(limit: int, said: str) -> None:
    def step(examples: int, count: int) -> int:
        return 1000 + 100 * -(-examples // count) + (300 if count == 4 else 0)  # more is held for more of them

    with pytest.raises(SettingError) as caught:
        Division(8, 4).fit(limit, step)
    assert said in str(caught.value) and str(caught.value).startswith("The limit must leave room for a step, but ")


def test_batch_norms_need_two_examples() -> None:
    assert Division.of(normed(), 9) == Division(9, 4, norms=True, count=1)
    assert Division.of(nn.Linear(2, 2), 9).most == 9 and Division.of(normed(), 1).most == 1


def test_doubled_until_it_cannot_be() -> None:
    division, counts = Division(5, 5), []
    with pytest.raises(DeviceMemoryError) as caught:
        while True:
            counts.append(division.count)
            division.double()
    assert counts == [1, 2, 4, 5]
    assert str(caught.value) == (
        "The memory of the device must hold a step of 5 in 5 micro-batches, but it did not; what was saved is whole: "
        "go on with --resume where more is free, or start anew with a smaller --batch-size, a smaller space or another "
        "--device."
    )
    with pytest.raises(DeviceMemoryError, match=r"must hold a step of 8, but"):
        Division(8, 1).double()


@pytest.mark.parametrize(
    ("error", "whether"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("could not create a primitive"), True),  # what oneDNN says, whatever was missing
        (RuntimeError("could not create a primitive descriptor for the convolution"), False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (exhausted("a step of 1"), False),
    ],
)
def test_what_says_that_memory_is_out(error: Exception, whether: bool) -> None:
    assert is_out_of_memory(error) is whether


def test_a_supernet_that_is_evaluated_in_parts_shares_within_each() -> None:
    shared = Times(3.0)
    network = nn.Sequential(Shared(shared), mixed())
    supernet, weights = Supernet(SPACE, network, F.mse_loss), torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    x = torch.randn(5, 2)
    with micro_batches(2):
        loss = supernet.evaluate(Batch(x, 2 * x), {"op": weights}).loss
        (found,) = torch.autograd.grad(loss, weights)
    whole = supernet.evaluate(Batch(x, 2 * x), {"op": weights}).loss
    torch.testing.assert_close(found, torch.autograd.grad(whole, weights)[0])
    assert shared.calls == 2 * 2 + 1
