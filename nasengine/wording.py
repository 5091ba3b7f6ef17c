"""Numbers in the words of a sentence."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number of things whose plural ends in "s": 1 epoch, 2 epochs, 1,000 candidates."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
