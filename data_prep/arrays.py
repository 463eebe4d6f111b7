"""The types of arrays that many rooms of data_prep use, and the one hash of numbers that they share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cluster.splitmix import splitmix64 as mix

__all__ = ["Integers", "Small", "mix"]

Integers = npt.NDArray[np.int64]
Small = npt.NDArray[np.int32]
