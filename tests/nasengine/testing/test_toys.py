from __future__ import annotations

import torch

from nasengine.testing import place, solvable


def test_the_solvable_model() -> None:
    supernet, train, valid = solvable()
    (w,) = supernet.parameters()
    for a, at in ((2.0, -2.0), (0.5, 3.0)):
        place(supernet, at)
        mixture = {"a": torch.tensor([a], dtype=torch.float64)}
        assert w.item() == at
        assert supernet.evaluate(train, mixture).loss.item() == (at - a) ** 2
        assert supernet.evaluate(valid, mixture).loss.item() == a * at - 2 * a + 1
