"""Random generators as pure functions of a key: a resumed run needs no history to draw the same numbers."""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on all numbers of `key` (non-negative) and on nothing else."""
    # SeedSequence pads with zeros: without the length, (5,) and (5, 0) would be one key.
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(seed & (2**63 - 1))
