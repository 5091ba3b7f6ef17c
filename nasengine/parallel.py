"""Processes that train one supernet together, started by torchrun: how they meet, agree, and notice that one is gone.

What they tell each other is numbers and texts, never pickled objects: nothing that is received can run code.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from nasengine import errors
from nasengine.errors import DeviceError, NasengineError, ParallelError

WAIT_SECONDS: Final = 600.0
"""How long a process waits for the others: for their start, and in every exchange."""

_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together.

    Attributes:
        rank: of this process, from 0 to `world` - 1; rank 0 writes and tells.
        world: how many there are.
        local: its number on its machine, which is that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


ALONE: Final = Ranks()
"""One process, which is all that there is."""


def ranks_of_environment(environment: Mapping[str, str]) -> Ranks:
    """What the variables of torchrun say; one process where they are missing. Raises ParallelError."""
    if environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    missing = [name for name in _VARIABLES if name not in environment]
    try:
        numbers = [int(environment[name]) for name in _VARIABLES if name not in missing and name != "MASTER_ADDR"]
    except ValueError:
        numbers = []
    if missing or not numbers or not 0 <= numbers[0] < numbers[1]:
        wrong = f"{missing[0]} is missing" if missing else "their numbers are wrong"
        raise ParallelError(
            f"Where WORLD_SIZE is {environment['WORLD_SIZE']!r}, torchrun must have set {', '.join(_VARIABLES)}, but "
            f"{wrong}; start with 'torchrun --nproc-per-node N -m nasengine search', or unset WORLD_SIZE."
        )
    return Ranks(numbers[0], numbers[1], numbers[2])


def require_one_process(what: str) -> None:
    """Raises ParallelError where torchrun started several processes of what is for one."""
    world = ranks_of_environment(os.environ).world
    if world > 1:
        raise _shared(
            ParallelError(
                f"Only 'nasengine search' divides its work among the processes of torchrun, but {world} of '{what}' "
                "were started; start it without torchrun."
            )
        )


def start(wait_seconds: float = WAIT_SECONDS) -> Ranks:
    """Meets the other processes of torchrun, once a process; one process where nothing says that there are more.

    Gloo carries what is on the CPU, NCCL what is on GPUs. A process group that is there already is used as it is; it
    must carry tensors on the CPU too. Where all processes are on one machine, they talk by its loopback interface, so
    that neither names nor firewalls matter.

    Args:
        wait_seconds: how long to wait for the others, now and in every exchange.

    Raises:
        ParallelError: the variables of torchrun are incomplete, or another process does not come.
    """
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    ranks = ranks_of_environment(os.environ)
    if ranks.world == 1:
        return ranks
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        for name in [name for _, name in socket.if_nameindex() if name.startswith("lo")][:1]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=wait_seconds))
    except (RuntimeError, ValueError) as error:
        raise ParallelError(
            f"All {ranks.world} processes must start within {wait_seconds:g} seconds and reach each other at "
            f"{os.environ['MASTER_ADDR']}, but rank {ranks.rank} did not ({errors.reason(error)[:200]}); start them "
            "anew, or name the network interface in GLOO_SOCKET_IFNAME."
        ) from None
    atexit.register(_leave)
    return ranks


def local_device(ranks: Ranks, device: torch.device) -> torch.device:
    """The device of this process: the GPU of its local rank where any GPU is meant. Raises DeviceError."""
    if ranks.world == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise DeviceError(
            f"The device of {ranks.world} processes must be cpu or cuda, a GPU for each, but got {str(device)!r}; add "
            "--device cpu or --device cuda."
        )
    count = torch.cuda.device_count()
    if ranks.local >= count:
        raise DeviceError(
            f"Every process must have a GPU of its own, but this machine has {count} and local rank {ranks.local} is "
            f"one too many; start with --nproc-per-node {count}, or add --device cpu."
        )
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


# What is exchanged


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replaces a contiguous tensor by its sum over all processes, the same bits on each. Raises ParallelError."""
    with _answered():
        dist.all_reduce(tensor)
    return tensor


def gathered(tensor: Tensor, world: int) -> Tensor:
    """The tensors of all processes, which have one shape, as (world, *shape). Raises ParallelError."""
    parts = list(torch.empty(world, *tensor.shape, dtype=tensor.dtype, device=tensor.device))
    with _answered():
        dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def largest(ranks: Ranks, *numbers: int) -> list[int]:
    """The largest value on any process of each number. Raises ParallelError."""
    if ranks.world == 1:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64)
    with _answered():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(number) for number in values.tolist()]


def from_first(ranks: Ranks, compute: Callable[[], bytes]) -> bytes:
    """What `compute` gives on rank 0, on all processes; an error that a user can mend is raised on all of them."""
    if ranks.world == 1:
        return compute()
    content, error = b"", None
    if ranks.first:
        try:
            content = compute()
        except NasengineError as caught:
            error = caught
    told = _broadcast(b"" if error is None else f"{type(error).__name__}\n{error}".encode())
    if told:
        raise _shared(error or _rebuilt(told.decode()))
    return _broadcast(content)


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """A block that no process leaves before all have: if any fails by an error that a user can mend, all do.

    A process without an error of its own raises that of the first that has one. Nothing may be exchanged inside.
    """
    if ranks.world == 1:
        yield
        return
    error: NasengineError | None = None
    try:
        yield
    except NasengineError as caught:
        error = caught
    told = _texts(f"{type(error).__name__}\n{error}" if error else "", ranks.world)
    if error is not None:
        raise _shared(error)
    for rank, text in enumerate(told):
        if text:
            raise _shared(_rebuilt(text, f" (rank {rank} of {ranks.world})"))


def check_alike(ranks: Ranks, digest: int, what: str, advice: str) -> None:
    """Raises ParallelError unless a digest is the same on all processes.

    Args:
        ranks: of this process.
        digest: what `digest` gave.
        what: "state", say.
        advice: what to do where it is not.
    """
    if ranks.world > 1:
        high, low = largest(ranks, digest, -digest)
        if high != -low:
            raise _shared(
                ParallelError(f"All {ranks.world} processes must have the same {what}, but they differ; {advice}.")
            )


def digest(value: Any) -> int:
    """63 bits that are equal for equal nested containers of tensors and plain values, and hardly for others."""
    found = hashlib.sha256()
    _digest(value, found.update)
    return int.from_bytes(found.digest()[:8]) >> 1


def _digest(value: Any, update: Callable[[Any], None]) -> None:
    if isinstance(value, Tensor):
        update(f"{value.dtype} {tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            update(f"{key!r}:".encode())
            _digest(part, update)
    elif isinstance(value, (list, tuple)):
        update(f"{len(value)}:".encode())
        for part in value:
            _digest(part, update)
    else:
        update(repr(value).encode())


@contextmanager
def _answered() -> Iterator[None]:
    """Turns an exchange that fails into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ParallelError(
            f"All {dist.get_world_size()} processes must go on, but rank {dist.get_rank()} lost another one, "
            f"{_how(str(error))}; what was saved is whole: start all of them again with --resume."
        ) from None


def _how(said: str) -> str:
    """What the libraries say of an exchange that failed, in words; as they say it where that is unknown."""
    if re.search(r"time[d ]*out", said, re.IGNORECASE):
        return "which did not answer in time"
    if re.search(r"connection|peer|reset|broken pipe", said, re.IGNORECASE):
        return "which ended"
    return f"as {errors.reason(RuntimeError(said))[:200]!r} says"


def _shared(error: NasengineError) -> NasengineError:
    error.shared = True
    return error


def _rebuilt(told: str, where: str = "") -> NasengineError:
    """An error of another process."""
    name, _, text = told.partition("\n")
    kind = getattr(errors, name, ParallelError)
    kind = kind if isinstance(kind, type) and issubclass(kind, NasengineError) else ParallelError
    error: NasengineError = kind.__new__(kind, f"{text.rstrip('.')}{where}.")
    return error


def _broadcast(content: bytes) -> bytes:
    size = torch.tensor([len(content)])
    with _answered():
        dist.broadcast(size, 0)
        if not int(size):
            return b""
        data = torch.frombuffer(bytearray(content) or bytearray(int(size)), dtype=torch.uint8)
        dist.broadcast(data, 0)
    return bytes(data.numpy())


def _texts(text: str, world: int) -> list[str]:
    """The texts of all processes."""
    content = text.encode()
    sizes = [int(size) for size in gathered(torch.tensor(len(content)), world).tolist()]
    if not max(sizes):
        return [""] * world
    padded = torch.frombuffer(bytearray(content.ljust(max(sizes))), dtype=torch.uint8)
    parts = gathered(padded, world)
    return [bytes(part[:size].numpy()).decode() for part, size in zip(parts, sizes, strict=True)]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
