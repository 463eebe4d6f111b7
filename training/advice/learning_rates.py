"""Usual learning rates by method and size of the model, and the range outside of which a run is likely to fail.

Rules of thumb, interpolated on logarithmic axes between the points below. The published figures were not checked
again, and no rates were compared here: below 10M parameters there is one run for each method (new, 1.8M:
2e-3; all weights of stories260k: 3e-3; LoRA on it: 1e-2), each of which learnt.
- new models: Brown et al. 2020 (arXiv 2005.14165, table 2.1) from 125M to 175B
- all weights fine-tuned: 2e-5 for 7B in Alpaca's and Zephyr's recipes, 5e-6 for 8B and 2e-6 for 70B in Tulu 3
  (Lambert et al. 2024, arXiv 2411.15124), 3e-4 for 1.7B and 1e-3 for 135M in SmolLM2's (alignment-handbook), which
  has a million conversations: lower here
- LoRA: 2e-4 for 7B and 13B, 1e-4 for 33B and 65B (Dettmers et al. 2023, arXiv 2305.14314), about ten times the rate of
  full fine-tuning (Schulman et al. 2025, "LoRA Without Regret")
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Method = Literal["new", "full", "lora"]

NAMES: dict[Method, str] = {"new": "a new model", "full": "fine-tuning all weights", "lora": "LoRA"}
USUAL: dict[Method, list[tuple[float, float]]] = {  # (parameters, learning rate)
    "new": [(1e6, 3e-3), (1e7, 1e-3), (1.25e8, 6e-4), (1.3e9, 2e-4), (6.7e9, 1.2e-4), (1.75e11, 6e-5)],
    "full": [(1e6, 3e-3), (1e7, 1e-3), (1.35e8, 2e-4), (1.7e9, 4e-5), (8e9, 1e-5), (7e10, 3e-6)],
    "lora": [(1e6, 1e-2), (1e7, 3e-3), (1.35e8, 1e-3), (1.7e9, 4e-4), (1.3e10, 2e-4), (6.5e10, 1e-4)],
}
FACTOR = 8.0  # between the usual rate and either end of the range


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """The usual learning rate and the range of plausible ones."""

    low: float
    usual: float
    high: float


def usual_learning_rates(method: Method, parameters: int) -> LearningRates:
    """Return the learning rates of a method for a model of this size."""
    points = USUAL[method]
    usual = points[-1][1] if parameters >= points[-1][0] else points[0][1]
    for (small, first), (large, second) in pairwise(points):
        if small <= parameters < large:
            share = math.log(parameters / small) / math.log(large / small)
            usual = first * (second / first) ** share
    usual = float(f"{usual:.1g}")
    return LearningRates(low=usual / FACTOR, usual=usual, high=usual * FACTOR)
