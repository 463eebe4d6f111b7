"""SplitMix64, the one hash of numbers that preparation and training share.

From Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014): every bit of the input moves about
half the bits of the output, and both functions are bijections. Unlike a library's generator it is the same for ever.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio, made odd


def splitmix64(states: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the generator's output for each state."""
    return finalize(states + GAMMA)


def finalize(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scatter the bits of 64-bit numbers: the last steps of the generator, without its increment."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
