"""Networks as graphs of operations for batches of any size: programs of torch.export, and ONNX of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def program(network: nn.Module, inputs: Tensor) -> ExportedProgram:
    """The graph of a network in evaluation.

    Args:
        network: takes one tensor.
        inputs: an example (batch, ...) of 2 or more, since torch takes a batch of 1 for a constant.

    Raises whatever torch and the network raise.
    """
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.inference_mode(False), torch.no_grad(), quiet():
        return torch.export.export(network, (inputs,), dynamic_shapes=(batch,))


def onnx_program(graph: ExportedProgram) -> Any:
    """A graph as torch.onnx.ONNXProgram, from "input" to "output". Raises ImportError, and whatever torch raises."""
    with torch.inference_mode(False), torch.no_grad(), quiet():
        return torch.onnx.export(
            graph,
            (),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what torch says about itself from the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
