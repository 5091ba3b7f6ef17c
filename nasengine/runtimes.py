"""Where networks are timed: a device, a runtime, threads; and what runs them there."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasengine.config import LatencySettings, resolve_device
from nasengine.errors import DeviceError, MissingExtraError
from nasengine.outline import Blank, Piece, allocated
from nasengine.programs import onnx_program, program
from nasengine.task import Shapes
from nasengine.timing import Runner, Timing, measure

_FINE = 1e-5  # seconds
_PIECE_SECONDS, _PIECE_BLOCK, _TOGETHER = 0.012, 0.001, 64


class Bench:
    """Times networks and pieces of them.

    Raises:
        DeviceError: the machine, or the runtime, does not have the device.
        MissingExtraError: the runtime is not installed.
    """

    def __init__(self, settings: LatencySettings, shapes: Shapes) -> None:
        self.settings, self.shapes = settings, shapes
        self.device = resolve_device(settings.device)
        if settings.runtime == "onnxruntime":
            _providers(self.device)

    def machine(self) -> dict[str, Any]:
        """What a latency depends on besides the network, as plain values."""
        names = ["torch", *(["onnxruntime"] if self.settings.runtime == "onnxruntime" else [])]
        return {
            "device": device_name(self.device),
            "runtime": self.settings.runtime,
            "versions": {name: version(name) for name in names},
            "threads": self.settings.threads,
            "batch_size": self.settings.batch_size,
        }

    def networks(
        self,
        networks: Sequence[nn.Module],
        seconds: float = 1.0,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> list[Timing]:
        """Times networks with random inputs, one forward pass a call, in turns; see `nasengine.timing.measure`.

        On a GPU the clock stops when the device is done; on one thread of a CPU it is the time of the processor.
        """
        run = self._session if self.settings.runtime == "onnxruntime" else self._forward
        with _threads(self.settings.threads), torch.inference_mode():
            return measure([run(network.eval()) for network in networks], seconds, progress=progress)

    def pieces(self, pieces: Sequence[Piece]) -> list[float]:
        """Seconds that pieces take by themselves, in PyTorch whatever the runtime is."""
        with _threads(self.settings.threads), torch.inference_mode():
            parts = [pieces[start : start + _TOGETHER] for start in range(0, len(pieces), _TOGETHER)]
            timings = [
                measure(list(map(self._piece, part)), _PIECE_SECONDS, block=_PIECE_BLOCK, patience=1) for part in parts
            ]
        return [timing.seconds for part in timings for timing in part]

    def _forward(self, network: nn.Module) -> Runner:
        inputs, network = self._inputs().to(self.device), network.to(self.device)
        return self._timed(lambda: network(inputs))

    def _session(self, network: nn.Module) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
        data = onnx_bytes(network.cpu(), self.shapes)
        session = onnxruntime.InferenceSession(data, options, providers=_providers(self.device))
        inputs = {session.get_inputs()[0].name: self._inputs().numpy()}
        return self._timed(lambda: session.run(None, inputs))

    def _inputs(self) -> Tensor:
        zeros = self.shapes.zeros(self.settings.batch_size)
        return torch.randn(zeros.shape) if zeros.is_floating_point() else zeros

    def _piece(self, piece: Piece) -> Runner:
        target = piece.target
        if isinstance(target, nn.Module):
            target = _realised(target, self.device)
        args = _filled(piece.args, self.device)
        named = {name: _filled(value, self.device) for name, value in piece.kwargs.items()}
        return self._timed(lambda: target(*args, **named))

    def _timed(self, call: Callable[[], object]) -> Runner:
        clock = _clock(self.device, self.settings.threads)
        waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
        wait = waits.get(self.device.type, lambda: None)

        def run(count: int) -> float:
            wait()
            start = clock()
            for _ in range(count):
                call()
            wait()
            return clock() - start

        return run


def device_name(device: torch.device) -> str:
    """What a device is called by its maker."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type} {names[0] if names else platform.processor() or platform.machine()}"


def onnx_bytes(network: nn.Module, shapes: Shapes) -> bytes:
    """A network in evaluation as an ONNX model whose first dimension is the batch. Raises MissingExtraError."""
    try:
        return bytes(onnx_program(program(network, shapes.zeros(2))).model_proto.SerializeToString())
    except ImportError:
        raise _missing() from None


def _providers(device: torch.device) -> list[str]:
    """What runs a model on a device. Raises MissingExtraError, and DeviceError where onnxruntime cannot."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise _missing() from None
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type, "")
    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise DeviceError(
            f"The device must be one for which onnxruntime is built, but it has {', '.join(there)} and got "
            f"{device.type!r}; give --device cpu or --runtime torch."
        )
    return [provider]


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "The runtime onnxruntime must be installed, but it or onnx or onnxscript is missing; run: "
        "pip install 'nasengine[export]'."
    )


def _clock(device: torch.device, threads: int) -> Callable[[], float]:
    """On one thread the time that the processor worked for it, which leaves out what other programs take."""
    fine = time.get_clock_info("thread_time").resolution < _FINE
    return time.thread_time if device.type == "cpu" and threads == 1 and fine else time.perf_counter


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _realised(module: nn.Module, device: torch.device) -> nn.Module:
    """A module of the meta device with weights: what is timed must not meet denormal numbers."""
    made = type(module).__new__(type(module))
    made.__dict__.update({name: value for name, value in vars(module).items() if name != "forward"})
    for name in ("_parameters", "_buffers"):
        tensors = getattr(module, name)
        real = {key: None if t is None else _numbers(t, device) for key, t in tensors.items()}
        vars(made)[name] = {
            key: nn.Parameter(t, requires_grad=False) if name == "_parameters" and t is not None else t
            for key, t in real.items()
        }
    return made


def _filled(form: Any, device: torch.device) -> Any:
    if isinstance(form, Blank):
        tensor = allocated(form, device)
        if tensor.is_floating_point():
            tensor.normal_()
        else:
            tensor.zero_()
        return tensor.as_strided(form.shape, form.stride, form.offset) if tensor.shape != form.shape else tensor
    if isinstance(form, tuple):
        return [_filled(part, device) for part in form]
    return device if isinstance(form, torch.device) else form


def _numbers(tensor: Tensor, device: torch.device) -> Tensor:
    real = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return real.uniform_(0.01, 0.1) if real.is_floating_point() else real.zero_()
