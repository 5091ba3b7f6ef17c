"""Parameters and multiply-adds of many cells of NAS-Bench-101 in the published network, and cells for predictors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nasengine.encoding import Graphs
from nasengine.errors import ArchitectureError
from nasengine.task import Shapes
from search_spaces._nasbench101 import INPUT, MAX_VERTICES, OPERATIONS, OUTPUT, quoted
from search_spaces._nasbench101_sequence import Codes, Rows

VOCABULARY: Final = (INPUT, *OPERATIONS, OUTPUT)

_ROWS = 32768  # at once: a hundred MB
_KERNELS = (3, 1, 0)  # in the order of OPERATIONS


@dataclass(frozen=True)
class Skeleton:
    """The network around the cells: what `NASBench101` has as settings."""

    channels: int
    stacks: int
    cells: int


def check_images(name: str, shapes: Shapes) -> None:
    """Raises ArchitectureError unless the inputs are images."""
    if len(shapes.input) != 3:
        raise ArchitectureError(
            f"The space {name!r} is for images (channels, height, width), but got inputs of shape "
            f"{quoted(shapes.input)}; choose another space."
        )


def costs(codes: Codes, skeleton: Skeleton, shapes: Shapes) -> tuple[Rows, Rows]:
    """Parameters (N,) and multiply-adds for one image (N,) of pruned cells with these numbers of their vertices.

    Both are those of `nasengine.cost` for the network that `NASBench101.build` gives.
    """
    parameters, multiply_adds = np.zeros(len(codes), np.int64), np.zeros(len(codes), np.int64)
    for start in range(0, len(codes), _ROWS):
        rows = slice(start, start + _ROWS)
        parameters[rows], multiply_adds[rows] = _costs(codes.take(rows), skeleton, shapes)
    return parameters, multiply_adds


def _costs(codes: Codes, skeleton: Skeleton, shapes: Shapes) -> tuple[Rows, Rows]:
    images, height, width = shapes.input
    stem = 9 * images * skeleton.channels
    parameters = np.full(len(codes), stem + 2 * skeleton.channels, np.int64)
    multiply_adds = np.full(len(codes), stem * height * width, np.int64)
    adjacency = codes.adjacency()
    inputs = outputs = skeleton.channels
    for stack in range(skeleton.stacks):
        outputs = skeleton.channels * 2**stack
        height, width = (-(-side // 2) if stack else side for side in (height, width))
        projected, weights, norms = _cell_sums(codes, adjacency, outputs)
        for before in (inputs, *[outputs] * (skeleton.cells - 1)):
            parameters += (before + 2) * projected + weights + 2 * norms
            multiply_adds += height * width * (before * projected + weights)
        inputs = outputs
    classifier = outputs * shapes.outputs
    return parameters + classifier + shapes.outputs, multiply_adds + classifier


def _cell_sums(codes: Codes, adjacency: NDArray[np.bool_], outputs: int) -> tuple[Rows, Rows, Rows]:
    """(N,) each, of cells with so many outputs: channels to which their input is projected, and the weights and the
    channels of their convolutions."""
    channels = vertex_channels(codes, adjacency, outputs)
    kernels = np.array([*_KERNELS, 0])[codes.operations]
    convolved = channels[:, 1:-1] * (kernels > 0)
    projected: Rows = (adjacency[:, 0] * channels).sum(axis=1)
    return projected, ((kernels * convolved) ** 2).sum(axis=1), convolved.sum(axis=1)


def vertex_channels(codes: Codes, adjacency: NDArray[np.bool_], outputs: int) -> Rows:
    """(N, 7): what `channels_of` gives, but 0 for the input; 0 where there is no vertex."""
    rows, last = np.arange(len(codes)), codes.vertices - 1
    sources = adjacency[rows, :, last]
    sources[:, 0] = False
    count = np.maximum(sources.sum(axis=1, keepdims=True), 1)
    share = outputs // count + (np.cumsum(sources, axis=1) <= outputs % count)
    result: Rows = np.where(sources, share, 0)
    for vertex in reversed(range(1, MAX_VERTICES - 1)):
        widest = (adjacency[:, vertex] * result).max(axis=1)
        result[:, vertex] = np.where(sources[:, vertex], result[:, vertex], widest)
    result[rows, last] = outputs
    return result


def encode_codes(codes: Codes, skeleton: Skeleton, shapes: Shapes) -> Graphs:
    """Cells as they are numbered.

    The numbers are the logarithms of their parameters and multiply-adds, and, of one cell with as many outputs as the
    first stack has channels, how these and the weights are spread over the operations and projections.
    """
    operations = np.full((len(codes), MAX_VERTICES), -1, np.int16)
    operations[:, 1:-1] = codes.operations
    operations[:, 1:-1] += codes.operations >= 0
    operations[:, 0] = VOCABULARY.index(INPUT)
    operations[np.arange(len(codes)), codes.vertices - 1] = VOCABULARY.index(OUTPUT)
    adjacency = codes.adjacency()
    total = np.log(np.stack(costs(codes, skeleton, shapes), axis=1))
    numbers = np.concatenate([total, _spread(codes, adjacency, skeleton.channels)], axis=1)
    return Graphs(operations, adjacency, numbers.astype(np.float32), VOCABULARY)


def _spread(codes: Codes, adjacency: NDArray[np.bool_], outputs: int) -> NDArray[np.float64]:
    """(N, 13): by operation the share of channels in all and at most, and how large its weights are; of the projections
    the share inside, to the output, and their size; into how many parts the output's channels are split."""
    shares = vertex_channels(codes, adjacency, outputs) / outputs
    inner = shares[:, 1:-1]
    of = [np.where(codes.operations == kind, inner, 0.0) for kind in range(len(OPERATIONS))]
    last = np.arange(len(codes)), codes.vertices - 1
    projected = (adjacency[:, 0] * shares).sum(axis=1)
    direct = adjacency[:, 0][last].astype(np.float64)
    weights = [((max(kernel, 1) * share) ** 2).sum(axis=1) for kernel, share in zip(_KERNELS, of, strict=True)]
    parts = (adjacency[last[0], :, last[1]])[:, 1:].sum(axis=1)
    columns = [
        *(share.sum(axis=1) for share in of),
        *(share.max(axis=1) for share in of),
        *(np.log(each + 0.02) for each in weights),
        projected - direct,
        direct,
        np.log(projected + 0.02),
        1.0 / np.maximum(parts, 1),
    ]
    return np.stack(columns, axis=1)
