"""Counts, in the singular and the plural, and sizes in messages."""

from __future__ import annotations

from collections.abc import Sequence


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: 1 file, 2 files, 12,000 rows."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def either_of(numbers: Sequence[int], noun: str) -> str:
    """Return alternative counts with their noun: 1 rank, 2 or 4 ranks."""
    return f"{' or '.join(f'{number:,}' for number in numbers)} {noun if list(numbers) == [1] else f'{noun}s'}"


def is_or_are(number: int) -> str:
    return "is" if number == 1 else "are"


def bytes_text(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
