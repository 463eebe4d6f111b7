"""Times and numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration as text, in its one or two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def short(number: float) -> str:
    """Return a number as text with three significant digits."""
    for unit, size in ((" T", 1e12), (" G", 1e9), (" M", 1e6)):
        if size <= number < 1e15:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}" if number < 100 or number >= 1e15 else f"{number:,.0f}"
