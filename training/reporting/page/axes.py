"""The numbers at the axes of a chart: which values are labelled, and how they are written."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)  # tick steps
LOG_ROUND = ((1, 2, 5), (1, 3), (1,))  # digits of the ticks of a logarithmic axis, from many to few
Numbers = npt.NDArray[np.float64]


def place(values: Numbers, ends: tuple[float, float], *, is_log: bool = False) -> Numbers:
    """Return where values lie on an axis: 0 at its low end, 1 at its high end."""
    low, high = ends
    return np.log(values / low) / math.log(high / low) if is_log else (values - low) / (high - low)


def widened(low: float, high: float, *, margin: float = 0.0, is_log: bool = False) -> tuple[float, float]:
    """Return a range with something between its ends, and with a share of it as a margin on both sides."""
    if is_log:
        factor = (high / low) ** margin if high > low else 2.0
        return low / factor, high * factor
    room = (high - low) * margin if high > low else 1.0
    return low - room, high + room


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return round values inside a range, at most `most`, and their text."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (*ROUND, 20.0) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(n * step, tick_text(n * step, step)) for n in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return values for a logarithmic axis, about as far from each other, at most `most`, and their text.

    A range that holds fewer than two of them is labelled as a linear axis is.
    """
    powers = range(exponent(low), exponent(high) + 1)
    for digits in LOG_ROUND:
        found = [float(f"{digit}e{power}") for power in powers for digit in digits]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    else:
        found = found[:: math.ceil(len(found) / most)]
    return [(value, short_text(value)) for value in found] if len(found) > 1 else ticks(low, high, most - 1)


def tick_text(value: float, step: float) -> str:
    """Return a tick's number, with the digits that tell it from the next one."""
    largest = abs(value)
    if largest < step / 2:
        return "0"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if largest >= size and step >= size / 100 and (size > 1e3 or step >= 1e3):
            return f"{value / size:.4g}{unit}"
    if 0 < step < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    decimals = max(0, -exponent(step) + (step / 10 ** exponent(step) % 1 > 1e-9))
    return f"{value:,.{decimals}f}"


def short_text(value: float) -> str:
    """Return a number of one digit: 0.001, 3e-5, 200, 1e6."""
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    digits, _, power = f"{value:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def exponent(value: float) -> int:
    return math.floor(math.log10(value) + 1e-12)
