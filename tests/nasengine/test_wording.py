"""Numbers in words."""

from __future__ import annotations

import pytest

from nasengine.wording import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"), [(1, "epoch", "1 epoch"), (0, "label", "0 labels"), (1234, "step", "1,234 steps")]
)
def test_one_thing_is_singular(count: int, noun: str, said: str) -> None:
    assert counted(count, noun) == said
