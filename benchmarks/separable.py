"""The compiled separable operator against the plain operators of PyTorch, both in channels-last, taking turns.

python benchmarks/separable.py [--threads 1] [--batch-sizes 16 64] [--repetitions 25]

Ratios are of medians of one run. The shares are of what this machine does in the same run: of the vector products and
sums a second that a loop of them reaches, and of the bytes a second of a copy. What is counted is what has to be done:
the products of the four convolutions backward and the two forward, and every large tensor read or written once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nasengine.operations import depthwise
from nasengine.separable import Pair, separable

SHAPES = ((16, 32), (32, 16), (64, 8), (36, 32))
KERNELS = ((3, 1, 1), (5, 1, 1), (5, 1, 2), (3, 2, 1))
Outputs = tuple[Tensor, Tensor, Tensor]
Unit = Callable[[Tensor, Tensor, Tensor], Outputs]


def _units(kernel: int, stride: int, dilation: int) -> tuple[Unit, Unit]:
    """Both ways from an input and two weights to an output and its statistics."""
    reach = dilation * (kernel - 1) // 2

    def plain(x: Tensor, first: Tensor, second: Tensor) -> Outputs:
        v = depthwise(torch.relu(x), first, stride, reach, dilation)
        y = torch.nn.functional.conv2d(v, second)
        normal, mean, rstd = torch.native_batch_norm(y, None, None, None, None, True, 0.0, 1e-5)
        return normal, mean, rstd

    def fused(x: Tensor, first: Tensor, second: Tensor) -> Outputs:
        return separable(x, None, Pair(first, second, stride, dilation))

    return plain, fused


def _seconds(
    unit: Unit, inputs: Sequence[Tensor], wanted: Sequence[Tensor], grads: dict[Unit, list[Tensor]]
) -> list[float]:
    """Forward, and backward to what is wanted."""
    start = time.perf_counter()
    outputs = unit(*inputs)
    middle = time.perf_counter()
    used = [output for output in outputs if output.requires_grad]
    given = grads.setdefault(unit, [torch.randn_like(output) for output in used])
    between = time.perf_counter()
    torch.autograd.grad(used, wanted, given)
    return [middle - start, time.perf_counter() - between]


def _products(channels: int, pixels: int, kernel: int, weights: bool) -> tuple[int, int]:
    """Multiply-adds forward and backward of the convolutions, without what is computed again."""
    first, second = pixels * channels * kernel * kernel, pixels * channels * channels
    return first + second, (first + second) * (2 if weights else 1)


def _most_products() -> float:
    """Multiply-adds a second of a large matrix product."""
    a = torch.randn(1024, 1024)
    return 1024**3 / min(_time(lambda: a @ a) for _ in range(20))


def _most_bytes() -> float:
    """Bytes a second, read and written, of a copy of 64 MB."""
    a, b = torch.zeros(2**24), torch.zeros(2**24)
    return 2 * 4 * 2**24 / min(_time(lambda: b.copy_(a)) for _ in range(20))


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _row(batch: int, shape: tuple[int, int], geometry: tuple[int, int, int], repetitions: int) -> list[float]:
    """Medians: forward, backward, backward to x alone, of plain and fused."""
    channels, size = shape
    x = torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last).requires_grad_()
    inputs = [x, torch.randn(channels, 1, geometry[0], geometry[0]), torch.randn(channels, channels, 1, 1)]
    inputs = [x, *(weight.requires_grad_() for weight in inputs[1:])]
    frozen = [x, *(weight.detach() for weight in inputs[1:])]
    grads: dict[Unit, list[Tensor]] = {}
    units = _units(*geometry)
    taken: list[list[float]] = [[] for _ in range(6)]
    for _ in range(repetitions + 3):
        for index, unit in enumerate(units):
            forward, backward = _seconds(unit, inputs, inputs, grads)
            _, alone = _seconds(unit, frozen, [x], grads)
            for place, value in enumerate((forward, backward, alone)):
                taken[3 * index + place].append(value)
    return [statistics.median(values[3:]) for values in taken]


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repetitions", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arithmetic, memory = _most_products(), _most_bytes()
    print(
        f"{arguments.threads} threads: {arithmetic / 1e9:.0f} G multiply-adds/s, {memory / 1e9:.0f} GB/s; milliseconds"
    )
    print("batch  shape     kernel    plain: fwd   bwd  to x   fused: fwd   bwd  to x", end="")
    print("   ratio  bwd  to x   all  of arithmetic  of memory")
    for batch in arguments.batch_sizes:
        for shape in SHAPES:
            for geometry in KERNELS:
                times = _row(batch, shape, geometry, arguments.repetitions)
                kernel, stride, dilation = geometry
                pixels = batch * (shape[1] // stride) ** 2
                products = sum(_products(shape[0], pixels, kernel, True))
                moved = 4 * shape[0] * (3 * batch * shape[1] ** 2 + 3 * pixels)
                both = times[3] + times[4]
                ratios = [times[0] / times[3], times[1] / times[4], times[2] / times[5], (times[0] + times[1]) / both]
                print(
                    f"{batch:5d}  {shape[0]}x{shape[1]}x{shape[1]:<3d}  {kernel}x{kernel}/{stride} d{dilation}"
                    f"       {times[0] * 1e3:5.2f} {times[1] * 1e3:5.2f} {times[2] * 1e3:5.2f}"
                    f"        {times[3] * 1e3:5.2f} {times[4] * 1e3:5.2f} {times[5] * 1e3:5.2f}"
                    f"   {ratios[0]:5.1f} {ratios[1]:4.1f} {ratios[2]:5.1f} {ratios[3]:5.1f}"
                    f"   {products / both / arithmetic:12.0%}  {moved / both / memory:9.0%}"
                )


if __name__ == "__main__":
    main()
