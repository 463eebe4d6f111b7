"""Counts in messages, in the singular and the plural."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: 1 file, 2 files, 12,000 rows."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
