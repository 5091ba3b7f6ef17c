"""Lives of a command line: processes that can be killed at any instant.

They are forked from a process that has imported what the verbs need, since that takes most of a short life. What a
fresh interpreter does is tested beside them, by `python -m nasengine`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

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
    process = FORKS.Process(target=_live, args=(list(arguments), said))
    process.start()
    return process


def _live(arguments: list[str], said: Path) -> None:
    for number, path in ((1, os.devnull), (2, str(said))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    sys.exit(main(arguments))
