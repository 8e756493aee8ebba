"""How many of what, for people."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number with its noun, such as "1 pair" or "0 pairs", for nouns that take an s."""
    return f"{number} {noun}{'s' * (number != 1)}"
