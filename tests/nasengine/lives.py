"""Processes that live shortly and can be killed at any instant: command lines, workers, ranks.

They are forked from a process that has imported what the verbs need, since that takes most of a short life. What a
fresh interpreter does is tested beside them, by `python -m nasengine` and by the workers of the verbs.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from nasengine import workers
from nasengine._cli.main import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *(__name__, "nasengine.collecting", "nasengine.searching", "nasengine.training"),
        *("matplotlib.figure", "torch._dynamo", "torch.utils.tensorboard"),  # imported as they are needed
    ]
)


def begin_life(arguments: Sequence[str], said: Path) -> ForkServerProcess:
    """Begins a process that runs a command line; its stderr goes to a file."""
    return begin(_live, list(arguments), said)


def begin(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Begins a process that calls a function of a module."""
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    return process


def say_into(said: Path) -> None:
    """From here on stdout of this process is left out, and stderr goes to a file."""
    for number, path in ((1, os.devnull), (2, str(said))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def _live(arguments: list[str], said: Path) -> None:
    say_into(said)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


class Member:
    """A forked worker, as a crew asks of one."""

    def __init__(self, process: ForkServerProcess) -> None:
        self.terminate, self.kill, self.wait = process.terminate, process.kill, process.join


def hire(crew: workers._Crew) -> Connection:
    """Adds a worker to a crew, in place of its own way, which starts an interpreter for each."""
    mine, theirs = FORKS.Pipe()
    crew.members[mine] = Member(begin(_serve, theirs))  # type: ignore[assignment]
    theirs.close()
    return mine


def _serve(connection: Connection) -> None:
    workers.serve(os.dup(connection.fileno()))
