"""The compiled separable operator equals the plain one, in all that it gives."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nasengine import launch, separable
from nasengine.seeding import generator
from nasengine.separable import Norm, Normalizable, Pair, plain_separable, separables

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
Given = list[Tensor | None]


def _given(shape: Sequence[int], outputs: int, kernel: int, normed: bool, seed: int = 0) -> Given:
    """x, mean, variance, scale and shift of its norm, depthwise and pointwise weights."""
    rng, channels = generator(seed), shape[1]
    x = torch.randn(*shape, generator=rng).to(memory_format=torch.channels_last)
    norm: Given = [None] * 4
    if normed:
        norm = [torch.randn(channels, generator=rng) for _ in range(4)]
        norm[1] = norm[1].square() + 0.1  # type: ignore[union-attr]
    depthwise = torch.randn(channels, 1, kernel, kernel, generator=rng)
    return [x, *norm, depthwise, torch.randn(outputs, channels, 1, 1, generator=rng)]


def _norm(given: Given) -> Norm | None:
    return None if given[1] is None else Norm(*given[1:5])  # type: ignore[arg-type]


def _call(plain: bool, given: Given, stride: int = 1, dilation: int = 1) -> Normalizable:
    assert given[0] is not None and given[6] is not None
    pair = Pair(given[5], given[6], stride, dilation)
    return (plain_separable if plain else separable.separable)(given[0], _norm(given), pair)


def _leaves(given: Given, dtype: torch.dtype = torch.float32) -> Given:
    return [None if tensor is None else tensor.detach().to(dtype).requires_grad_() for tensor in given]


def _loss(outputs: Sequence[Tensor], seed: int = 1) -> Tensor:
    rng = generator(seed)
    weights = [torch.randn(output.shape, generator=rng).to(output) for output in outputs]
    return torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()


def _all(given: Given, geometry: tuple[int, int], plain: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Outputs and gradients of everything."""
    leaves = _leaves(given, dtype)
    outputs = _call(plain, leaves, *geometry)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [*outputs, *torch.autograd.grad(_loss(outputs), wanted)]


def _close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other.double()).abs().max() <= tolerance * other.double().abs().max() + 1e-6


@pytest.fixture
def kernels_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Sees which kernels run: forward as False, backward as True."""
    calls: list[bool] = []
    real = launch.run_pairs

    def seen(back: bool, *rest: object) -> None:
        calls.append(back)
        real(back, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(separable, "run_pairs", seen)
    yield calls


@needs_numba
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_fast_is_plain(kernel: int, stride: int, dilation: int, kernels_run: list[bool]) -> None:
    shapes = [((3, 16, 8, 8), 16), ((1, 5, 7, 5), 5), ((3, 36, 33, 31), 36), ((2, 5, 1, 1), 20), ((2, 40, 4, 9), 24)]
    for index, (shape, outputs) in enumerate(shapes):
        given = _given(shape, outputs, kernel, normed=index % 2 == 0, seed=index)
        found = _all(given, (stride, dilation), plain=False)
        _close(found, _all(given, (stride, dilation), plain=True, dtype=torch.float64))
        assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert kernels_run == [False, True] * len(shapes)


@needs_numba
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("outputs", [1, 16, 36, 64])
def test_any_channels(outputs: int, normed: bool) -> None:
    given = _given((2, 33, 6, 5), outputs, 3, normed)
    _close(_all(given, (1, 1), plain=False), _all(given, (1, 1), plain=True, dtype=torch.float64))


@needs_numba
def test_variance_is_accurate_far_from_zero() -> None:
    given = _given((4, 3, 16, 16), 8, 3, normed=False)
    assert given[0] is not None
    given[0] = (1000 + given[0]).to(memory_format=torch.channels_last)
    given[5] = torch.nn.functional.pad(torch.ones(3, 1, 1, 1), (1, 1, 1, 1))
    found, expected = _call(False, given), _call(True, _leaves(given, torch.float64))
    assert torch.allclose(found.var.double(), expected.var, rtol=1e-2)


@needs_numba
def test_several_pairs_share_an_input(kernels_run: list[bool]) -> None:
    first, second = _given((3, 16, 9, 8), 16, 3, True), _given((3, 16, 9, 8), 20, 5, True, seed=1)
    geometry = [(1, 1), (2, 2), (1, 1)]
    weights = [*first[5:], *second[5:], None, second[6]]
    both = []
    for plain in (False, True):
        leaves = _leaves([*first[:5], *weights])
        x, norm, flat = leaves[0], _norm(leaves), leaves[5:]
        assert x is not None
        pairs = [Pair(flat[2 * i], flat[2 * i + 1], *geometry[i]) for i in range(3)]  # type: ignore[arg-type]
        units = [plain_separable(x, norm, pair) for pair in pairs] if plain else separables(x, norm, pairs)
        outputs = [tensor for unit in units for tensor in unit]
        wanted = [leaf for leaf in leaves if leaf is not None]
        both.append([*outputs, *torch.autograd.grad(_loss(outputs), wanted)])
    _close(both[0], both[1])
    assert kernels_run == [False, True]


@needs_numba
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [5], [6], [5, 6], [0, 6], [0, 5]])
def test_only_what_is_needed(wanted: list[int]) -> None:
    given = _given((3, 20, 10, 6), 20, 5, normed=True)
    expected = _all(given, (2, 1), plain=True)[3:]
    tensors = [given[i].clone().requires_grad_(i in wanted) for i in range(7)]  # type: ignore[union-attr]
    outputs = _call(False, tensors, 2, 1)  # type: ignore[arg-type]
    _loss(outputs).backward()  # type: ignore[no-untyped-call]
    for index, tensor in enumerate(tensors):
        assert (tensor.grad is not None) == (index in wanted)
    _close([tensors[i].grad for i in wanted], [expected[i] for i in wanted])  # type: ignore[misc]


@needs_numba
@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], [1, 2]])
def test_gradients_of_some_outputs(used: list[int]) -> None:
    given, both = _given((2, 7, 5, 6), 9, 3, normed=True), []
    for plain in (False, True):
        leaves = _leaves(given)
        outputs = _call(plain, leaves, 1, 2)
        both.append(torch.autograd.grad(_loss([outputs[i] for i in used]), leaves))  # type: ignore[arg-type]
    _close(both[0], both[1])


@needs_numba
def test_bits_do_not_depend_on_threads() -> None:
    given, before = _given((5, 16, 12, 12), 16, 3, normed=True), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(_all(given, (1, 1), plain=False))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_numba
def test_threads_of_python_where_there_is_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    given, before = _given((5, 16, 12, 12), 16, 3, normed=True), torch.get_num_threads()
    expected = _all(given, (1, 1), plain=False)
    monkeypatch.setattr(launch, "_team", lambda: None)
    monkeypatch.setattr(launch, "_runner", launch._runner.__wrapped__)
    try:
        torch.set_num_threads(3)
        found = _all(given, (1, 1), plain=False)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_second_derivatives() -> None:
    given = _given((2, 3, 4, 5), 2, 3, normed=True)
    doubles = _leaves(given, torch.float64)
    assert torch.autograd.gradgradcheck(lambda *tensors: _call(False, list(tensors), 2, 1), doubles)


@needs_numba
@pytest.mark.parametrize("normed", [False, True])
def test_second_derivatives_are_the_plain_ones(normed: bool, kernels_run: list[bool]) -> None:
    given, both = _given((2, 16, 6, 6), 16, 3, normed), []
    for plain in (False, True):
        leaves = [leaf for leaf in _leaves(given)]
        wanted = [leaf for leaf in leaves if leaf is not None]
        first = torch.autograd.grad(_loss(_call(plain, leaves, 1, 2)), wanted, create_graph=True)
        second = torch.autograd.grad(_loss(first, seed=2), wanted)
        both.append([*first, *second])
    _close(both[0], both[1])
    assert kernels_run == [False]


def test_without_numba(monkeypatch: pytest.MonkeyPatch, kernels_run: list[bool]) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(launch, "compiled", launch.compiled.__wrapped__)
    given = _given((2, 5, 6, 6), 5, 3, normed=True)
    assert not launch.compiled()
    found, expected = _all(given, (1, 1), plain=False), _all(given, (1, 1), plain=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and not kernels_run


@needs_numba
def test_where_numba_cannot_compile(monkeypatch: pytest.MonkeyPatch, kernels_run: list[bool]) -> None:
    from nasengine import kernels

    def fails() -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernels, "compile_all", fails)
    monkeypatch.setattr(launch, "compiled", functools.cache(launch.compiled.__wrapped__))
    x = torch.randn(1, 4, 5, 5)
    pair = Pair(torch.randn(4, 1, 3, 3), torch.randn(4, 4, 1, 1))
    with pytest.warns(
        UserWarning, match="numba cannot compile loops here, plain modules run, slower: .*no such instruction"
    ):
        found = separable.separable(x, None, pair)
    assert torch.equal(found.output, plain_separable(x, None, pair).output)
    assert torch.equal(separable.separable(x, None, pair).output, found.output)  # and says it once
    assert not kernels_run


def test_importing_the_operator_imports_no_numba() -> None:
    program = "import sys, nasengine, nasengine.separable; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_other_devices_and_types_are_plain(kernels_run: list[bool]) -> None:
    given = [tensor for tensor in _given((2, 5, 7, 6), 9, 3, normed=True) if tensor is not None]
    found = _call(False, [tensor.to("meta") for tensor in given], 2, 1)
    assert found.output.shape == (2, 9, 4, 3) and found.mean.shape == found.var.shape == (9,) and found.output.is_meta
    with FakeTensorMode() as mode:
        assert _call(False, [mode.from_tensor(tensor) for tensor in given], 2, 1).output.shape == (2, 9, 4, 3)
    assert _call(False, [tensor.double() for tensor in given]).output.dtype == torch.float64
    assert not kernels_run


def test_export_sees_ordinary_operators() -> None:
    given = _given((2, 5, 7, 6), 9, 3, normed=False)

    class Unit(torch.nn.Module):
        def forward(self, x: Tensor) -> Normalizable:
            return _call(False, [x, *given[1:]])

    x = torch.randn(2, 5, 7, 6, generator=generator(0)).to(memory_format=torch.channels_last)
    program = torch.export.export(Unit(), (x,), strict=False)
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)
    _close(program.module()(x), Unit()(x))


@needs_numba
def test_other_memory_formats_are_converted(kernels_run: list[bool]) -> None:
    given = _given((2, 6, 5, 7), 6, 3, normed=True)
    expected = _all(given, (1, 1), plain=True)
    given[0] = given[0].contiguous()  # type: ignore[union-attr]
    given[3] = torch.stack([given[3], given[3]], 1)[:, 0]  # type: ignore[list-item]
    _close(_all(given, (1, 1), plain=False), expected)
    assert kernels_run == [False, True]


@needs_numba
def test_what_is_not_a_number_stays_so() -> None:
    given = _given((1, 16, 8, 8), 16, 3, normed=False)
    x = given[0]
    assert x is not None
    x[0, 3, 4, 4] = torch.nan
    x = x.requires_grad_()
    found, expected = (_call(plain, [x, *given[1:]]) for plain in (False, True))
    assert torch.equal(found.output.isnan(), expected.output.isnan()) and found.output.isnan().sum() == 16 * 9
    assert found.mean.isnan().all() and found.var.isnan().all()
    gradient, plain = (torch.autograd.grad(unit.output.sum(), x)[0] for unit in (found, expected))
    assert torch.allclose(gradient, plain, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_go_together_are_refused_by_torch() -> None:
    x, *rest, pointwise = _given((1, 16, 8, 8), 16, 3, normed=False)
    assert x is not None and pointwise is not None
    with pytest.raises(RuntimeError):
        _call(False, [x[:, :15], *rest, pointwise])
    with pytest.raises(RuntimeError):
        _call(False, [x, *rest, pointwise[:, :8]])
