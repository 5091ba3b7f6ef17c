"""The DARTS networks and hypergradients give the numbers that the public implementation gives.

`tests/golden/darts_reference.json` holds what that implementation computed, in float64, with every parameter, alpha,
momentum buffer and image drawn by `drawn` from its name. The names follow the structure of the published network, so
that nothing of the other code is needed to repeat the comparison.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasengine import launch
from nasengine.bilevel import Evaluate, VirtualStep, first_order, second_order
from nasengine.operations import DepthwiseConv
from nasengine.separable import by_formula
from nasengine.supernet import MixedOp, Supernet, decided
from nasengine.task import Batch, Shapes
from search_spaces._darts_network import DerivedCell, SearchCell
from search_spaces.darts import DARTS, KINDS

GOLDEN: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "darts_reference.json").read_text(encoding="utf-8")
)
RATE, MOMENTUM, DECAY = 0.025, 0.9, 3e-4


def drawn(name: str, shape: tuple[int, ...], scale: float, shift: float = 0.0) -> Tensor:
    """Normal numbers that depend on the name alone; numpy guarantees this generator's stream for ever."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(shift + scale * np.asarray(numbers))


def value(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter; `kind` is "weight" or "bias"."""
    if len(shape) == 1:
        return drawn(name, shape, 0.1, shift=1.0 if kind == "weight" else 0.0)
    return drawn(name, shape, (2.0 / float(np.prod(shape[1:]))) ** 0.5)


def parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The named places of the published network that hold parameters."""
    for name in ("stem", "auxiliary", "classifier"):
        if isinstance(module := getattr(network, name), nn.Module):
            yield name, module
    assert isinstance(network.cells, nn.ModuleList)
    for index, cell in enumerate(network.cells):
        assert isinstance(cell, (SearchCell, DerivedCell))
        yield f"cells.{index}.before_last", cell.preprocess.before_last
        yield f"cells.{index}.last", cell.preprocess.last
        for edge, module in cell.edges.items():
            if isinstance(module, MixedOp):
                for option, operation in zip(module.choice.options, module.options, strict=True):
                    yield f"cells.{index}.{edge}.{option}", operation
            else:
                yield f"cells.{index}.{edge}", module


def canonical(network: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Parameters as canonical name -> (weight or bias, parameter), the i-th of a part being called `part.i`."""
    found: dict[str, tuple[str, Tensor]] = {
        f"{part}.{place}": (name.rpartition(".")[2], parameter)
        for part, module in parts(network)
        for place, (name, parameter) in enumerate(module.named_parameters())
    }
    assert len(found) == len(list(network.parameters()))
    return found


def fill(network: nn.Module) -> dict[str, Tensor]:
    """Gives every parameter the value of its canonical name, and returns the parameters by that name."""
    found = canonical(network)
    with torch.no_grad():
        for name, (kind, parameter) in found.items():
            parameter.copy_(value(name, kind, tuple(parameter.shape)))
    return {name: parameter for name, (_, parameter) in found.items()}


def batch(name: str, size: int, side: int, dtype: torch.dtype) -> Batch:
    return Batch(drawn(f"images.{name}", (size, 3, side, side), 1.0).to(dtype), torch.arange(size) * 3 % 10)


def summary(gradients: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Per stem, cell and head: the norm of its gradients, and their product with random directions."""
    groups: dict[str, list[str]] = {}
    for name in gradients:
        groups.setdefault(".".join(name.split(".")[: 2 if name.startswith("cells") else 1]), []).append(name)
    result = {}
    for group, names in groups.items():
        square = sum(float(gradients[name].double().square().sum()) for name in names)
        probes = {name: drawn(f"probe.{name}", tuple(gradients[name].shape), 1.0) for name in names}
        product = sum(float((gradients[name].double() * probes[name]).sum()) for name in names)
        result[group] = [square**0.5, product]
    return result


def worst(actual: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> float:
    """Largest difference of two summaries, relative to the norm of the group."""
    assert actual.keys() == expected.keys()
    return max(
        abs(a - e) / expected[group][0]
        for group in expected
        for a, e in zip(actual[group], expected[group], strict=True)
    )


def relative(actual: Tensor, expected: object) -> float:
    """Largest difference relative to the largest expected number."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    return float((actual.double() - wanted).abs().max() / wanted.abs().max())


class Search:
    """Our supernet at the values of the reference."""

    def __init__(self, channels: int, layers: int, side: int, dtype: torch.dtype) -> None:
        space, shapes = DARTS(channels=channels, layers=layers), Shapes((3, side, side), 10)
        self.supernet: Supernet = space.supernet(shapes, F.cross_entropy).to(dtype)
        self.weights = fill(self.supernet.network)
        edges = [f"{source}-{node}" for source, node in space.edges()]
        self.labels = {kind: [f"{kind}/{edge}" for edge in edges] for kind in KINDS}
        self.alphas = [drawn(f"alphas.{kind}", (14, 8), 0.5).to(dtype).requires_grad_() for kind in KINDS]

    def mixture(self) -> dict[str, Tensor]:
        tables = zip(KINDS, self.alphas, strict=True)
        return {
            label: row
            for kind, table in tables
            for label, row in zip(self.labels[kind], table.softmax(-1), strict=True)
        }

    def evaluate(self, data: Batch) -> Evaluate:
        return lambda weights: self.supernet.evaluate(data, self.mixture(), weights)

    def named(self) -> dict[str, Tensor]:
        return dict(self.supernet.named_parameters())

    def buffers(self) -> dict[str, Tensor]:
        """Momentum buffers by parameter name."""
        canonical_names = {id(parameter): name for name, parameter in self.weights.items()}
        return {
            name: drawn(f"momentum.{canonical_names[id(p)]}", tuple(p.shape), 0.01).to(p)
            for name, p in self.named().items()
        }


# Measured against the other code: 6e-15 in float64, and 5e-14 for the finite differences of the second order.
CLOSE = 1e-9
# In float32 the other code's own alpha gradients are 2e-3 from its float64 ones: rounding near the kinks of ReLU.
CLOSE_32 = 1e-2


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


def data_of(golden: Mapping[str, Any], dtype: torch.dtype) -> tuple[Batch, Batch]:
    size, side = golden["batch"], golden["side"]
    return batch("train", size, side, dtype), batch("valid", size, side, dtype)


def search_of(golden: Mapping[str, Any], dtype: torch.dtype) -> Search:
    return Search(golden["channels"], golden["layers"], golden["side"], dtype)


def test_supernet_outputs_and_weight_gradients(dtype: torch.dtype) -> None:
    golden, close = GOLDEN["search"], CLOSE if dtype == torch.float64 else CLOSE_32
    search, (train, _) = search_of(golden, dtype), data_of(golden, dtype)
    evaluation = search.supernet.evaluate(train, search.mixture())
    gradients = torch.autograd.grad(evaluation.loss, list(search.weights.values()))
    assert relative(evaluation.outputs, golden["logits"]) < min(close, 1e-5)
    assert float(evaluation.loss.detach()) == pytest.approx(golden["loss"], rel=min(close, 1e-5))
    assert worst(summary(dict(zip(search.weights, gradients, strict=True))), golden["weight_gradients"]) < close


def test_first_order_alpha_gradients(dtype: torch.dtype) -> None:
    golden, close = GOLDEN["search"], CLOSE if dtype == torch.float64 else CLOSE_32
    search, (train, valid) = search_of(golden, dtype), data_of(golden, dtype)
    virtual = VirtualStep(RATE, MOMENTUM, DECAY, search.buffers())
    answer = first_order(search.evaluate(train), search.evaluate(valid), search.named(), search.alphas, virtual)
    assert float(answer.valid.loss) == pytest.approx(golden["valid_loss"], rel=min(close, 1e-5))
    for gradient, expected in zip(answer.gradients, golden["alpha_gradients"], strict=True):
        assert relative(gradient, expected) < close


def textbook(self: MixedOp, x: Tensor) -> Tensor:
    """The published sum over all options, "none" included."""
    weights = decided(self.choice.label)
    assert isinstance(weights, Tensor)
    terms = [weight * option(x) for weight, option in zip(weights, self.options, strict=True)]
    return sum(terms[1:], start=terms[0])


def gradients_in(dtype: torch.dtype, share: bool) -> list[Tensor]:
    """Loss, all gradients of weights, and those of alphas in first order."""
    golden = GOLDEN["search"]
    search, (train, valid) = search_of(golden, dtype), data_of(golden, dtype)
    search.supernet.share = share
    loss = search.supernet.evaluate(train, search.mixture()).loss
    weights = torch.autograd.grad(loss, list(search.weights.values()))
    virtual = VirtualStep(RATE)
    alphas = first_order(search.evaluate(train), search.evaluate(valid), search.named(), search.alphas, virtual)
    return [loss.detach(), torch.cat([g.flatten() for g in weights]), *alphas.gradients]


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    return [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]


@pytest.fixture
def of_the_textbook(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], list[Tensor]]:
    """The same by the published sums and modules."""

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(MixedOp, "forward", textbook)
            patch.setattr(DepthwiseConv, "forward", nn.Conv2d.forward)
            return gradients_in(dtype, share=False)

    return gradients


def test_float32_gradients_agree_with_the_textbook_on_the_same_machine(
    of_the_textbook: Callable[[torch.dtype], list[Tensor]],
) -> None:
    """1e-4 needs the rounding of the published sum: one other bit before a kink already costs more."""
    with by_formula():
        assert max(apart(gradients_in(torch.float32, share=True), of_the_textbook(torch.float32))) < 1e-4


def test_compiled_loops_agree_but_for_a_few_kinks(of_the_textbook: Callable[[torch.dtype], list[Tensor]]) -> None:
    """They round otherwise than the published sums, so that a few rectifiers and maxima fall on the other side.

    So does the textbook in float32: weights times 1 +- 6e-8 move its gradients by as much, up to 2e-3.
    """
    exact, compiled = of_the_textbook(torch.float64), gradients_in(torch.float32, share=True)
    assert launch.compiled()
    assert max(apart(compiled, exact)) < 5e-3


def test_second_order_alpha_gradients_with_momentum_and_decay() -> None:
    golden, first = GOLDEN["second_order"], GOLDEN["search"]
    search, (train, valid) = search_of(first, torch.float64), data_of(first, torch.float64)
    virtual = VirtualStep(RATE, MOMENTUM, DECAY, search.buffers())
    answer = second_order(search.evaluate(train), search.evaluate(valid), search.named(), search.alphas, virtual)
    assert float(answer.valid.loss) == pytest.approx(golden["valid_loss"], rel=CLOSE)
    for gradient, expected, plain in zip(
        answer.gradients, golden["alpha_gradients"], first["alpha_gradients"], strict=True
    ):
        assert relative(gradient, expected) < 1e-7
        assert relative(torch.tensor(plain), expected) > 0.5  # the correction is not small here


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2"])
def test_derived_network(name: str) -> None:
    golden = GOLDEN["derived_networks"][name]
    space = DARTS(channels=golden["channels"], layers=golden["layers"], auxiliary=True)
    architecture, shapes = space.read(golden["genotype"]), Shapes((3, golden["side"], golden["side"]), 10)
    network = space.build(architecture, shapes).to(torch.float64)
    weights, (train, _) = fill(network), data_of(golden, torch.float64)

    logits, auxiliary = network(train.inputs)
    loss = F.cross_entropy(logits, train.targets) + 0.4 * F.cross_entropy(auxiliary, train.targets)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    assert relative(logits.detach(), golden["logits"]) < CLOSE
    assert relative(auxiliary.detach(), golden["auxiliary"]) < CLOSE
    assert float(loss.detach()) == pytest.approx(golden["loss"], rel=CLOSE)
    assert worst(summary(dict(zip(weights, gradients, strict=True))), golden["weight_gradients"]) < CLOSE

    with torch.no_grad():
        assert relative(network.eval()(train.inputs), golden["eval_logits"]) < CLOSE


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2"])
def test_parameters_of_the_published_networks(name: str) -> None:
    golden, space = GOLDEN["derived_networks"][name], DARTS(channels=36, layers=20)
    with torch.device("meta"):
        network = space.build(space.read(golden["genotype"]), Shapes((3, 32, 32), 10))
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["parameters"]


@pytest.mark.parametrize(("kind", "start"), [("normal", 0), ("rounded", 30)])
def test_derived_genotypes(kind: str, start: int) -> None:
    """Rounded alphas have ties within and between edges."""
    space = DARTS()
    for place, text in enumerate(GOLDEN["genotypes"][kind], start=start):
        weights: dict[str, Tensor] = {}
        for cell in KINDS:
            table = drawn(f"derive.{place}.{cell}", (14, 8), 1.0)
            rows = (table.round() if kind == "rounded" else table).float().softmax(-1)
            weights |= {f"{cell}/{s}-{n}": row for (s, n), row in zip(space.edges(), rows, strict=True)}
        assert space.derive(space.choices(), weights) == space.read(text)
