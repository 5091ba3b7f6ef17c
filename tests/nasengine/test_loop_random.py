"""Random states: functions of a key, saved and put back."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nasengine.loop import random_state, seeded, set_random_state


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


@pytest.fixture
def _random_states() -> Iterator[None]:
    before = random_state()
    yield
    set_random_state(before)


@pytest.mark.usefixtures("_random_states")
def test_seeded_is_a_function_of_its_key_and_leaves_no_trace() -> None:
    def inside(seed: int, stream: int) -> tuple[float, float, float]:
        with seeded(seed, stream):
            return draws()

    set_random_state(fixed := random_state())
    expected = draws()
    set_random_state(fixed)
    first = inside(3, 1)
    with pytest.raises(ZeroDivisionError), seeded(3, 1):
        raise ZeroDivisionError
    assert draws() == expected
    assert inside(3, 1) == first
    assert len({first, inside(4, 1), inside(3, 2)}) == 3


@pytest.mark.usefixtures("_random_states")
def test_random_state_survives_being_saved() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    np.random.standard_normal()
    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = draws(), float(np.random.standard_normal())
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert (draws(), float(np.random.standard_normal())) == expected


@pytest.mark.usefixtures("_random_states")
def test_random_states_of_gpus_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fixed = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    expected = draws()
    set_random_state(fixed)
    assert draws() == expected
