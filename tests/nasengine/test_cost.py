from __future__ import annotations

import pytest
import torch
from torch import nn

from nasengine.cost import StepCost, bytes_of, multiply_adds, parameters, peak_memory, step_bytes, step_cost
from nasengine.task import Shapes
from search_spaces.darts import DARTS

CPU = torch.device("cpu")
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def test_parameters_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 3 * 8 * 9
        nn.BatchNorm2d(8),  # 8 + 8
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 8 * 9 + 8
        nn.Flatten(),
        nn.Linear(8 * 16, 10),  # 1280 + 10
    )
    assert parameters(network) == 216 + 16 + 80 + 1290


def test_multiply_adds_counted_by_hand() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 4 * 4 outputs of 8 channels, each 27
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),  # each 9
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 16, 10),
        )

    assert multiply_adds(build, Shapes((3, 8, 8), 10)) == 16 * 8 * 27 + 16 * 8 * 9 + 1280


def test_multiply_adds_are_of_evaluation_and_allocate_nothing() -> None:
    seen: list[tuple[bool, str]] = []

    class Net(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, x.device.type))
            return super().forward(x)

    assert multiply_adds(lambda: Net(7, 2), Shapes((7,), 2)) == 14
    assert seen == [(False, "meta")]


def test_published_size_of_darts_v2() -> None:
    space, shapes = DARTS().final(), Shapes((3, 32, 32), 10)
    architecture = space.read(DARTS_V2)
    with torch.device("meta"):
        network = space.build(architecture, shapes)
    assert parameters(network) == 3_349_342
    assert multiply_adds(lambda: space.build(architecture, shapes), shapes) == pytest.approx(528e6, rel=0.03)


def test_an_auxiliary_head_does_not_count() -> None:
    shapes = Shapes((3, 32, 32), 10)
    genotype = DARTS_V2
    sizes, flops = [], []
    for auxiliary in (False, True):
        space = DARTS(channels=4, layers=3, auxiliary=auxiliary)
        architecture = space.read(genotype)
        sizes.append(parameters(space.build(architecture, shapes)))
        flops.append(multiply_adds(lambda s=space, a=architecture: s.build(a, shapes), shapes))  # type: ignore[misc]
    assert sizes[0] == sizes[1] and flops[0] == flops[1]


def test_memory_of_a_step_counted_by_hand() -> None:
    weight, inputs = nn.Parameter(torch.zeros(10, 10)), torch.zeros(100, 10)
    steps = []

    def step() -> None:
        steps.append(1)
        hidden = inputs @ weight  # 4000 bytes
        (hidden.sigmoid()).sum().backward()  # 4000, the sum, its gradient, and that of the 4000

    found = step_cost(step, held=lambda: 1000, repeats=3)
    assert found.memory == 1000 + 3 * 4000 + 2 * 4 and found.seconds > 0 and len(steps) == 5
    assert isinstance(found, StepCost)


def test_activations_are_let_go() -> None:
    weight = nn.Parameter(torch.ones(1000))

    def step() -> None:
        for _ in range(5):
            weight.sigmoid().sum().backward()

    kept, gradient = 4000 + 4, 4000 + 4  # of the sigmoid with its sum, and of what goes back
    assert step_bytes(step, CPU) == kept + gradient + 4000  # the first gradient becomes that of the weight
    weight.grad = None
    assert step_cost(step, held=lambda: 7, repeats=1).memory == 7 + kept + gradient


def test_the_peak_of_a_process_never_falls() -> None:
    before = peak_memory(CPU)
    held = torch.ones(2**22)
    after = peak_memory(CPU)
    assert before is not None and after is not None and after >= max(before, held.nbytes)
    assert peak_memory(torch.device("mps")) is None


def test_bytes_of_distinct_storages() -> None:
    base = torch.zeros(100)
    assert bytes_of([base, base[:10], base.view(10, 10), torch.zeros(5, dtype=torch.float64)]) == 400 + 40
    assert bytes_of([]) == 0
