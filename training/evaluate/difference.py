"""Whether the tuned model's loss is lower than its base's, or only looks so.

A paired bootstrap over documents (Efron & Tibshirani 1993; Koehn 2004 for paired systems): documents are drawn with
replacement, the same for both models, and the difference of the pooled losses is computed for each draw. Tokens of one
document are not independent, so documents are drawn and not tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.wording import count_of
from training.evaluate.scoring import DocumentScore, Key

DRAWS = 2000
FEWEST_DOCUMENTS = 6  # with fewer, even a loss that falls in every document may be chance: 2 / 2**5 > 0.05
DRAWN_AT_ONCE = 1 << 22  # numbers in memory

Direction = Literal["lower", "higher", "no clear difference", "too few documents"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The tuned model's loss minus its base's, in nats per token.

    `low` and `high` bound 95% of the draws, None with too few documents. `improved` counts the documents whose own loss
    is lower, `unchanged` those whose loss is the very same.
    """

    loss: float
    low: float | None
    high: float | None
    documents: int
    improved: int
    unchanged: int
    direction: Direction

    def as_text(self) -> str:
        """Return the difference in words, for people."""
        share = f"lower in {self.improved:,} of {count_of(self.documents, 'document')}"
        if self.low is None or self.high is None:
            return f"{self.loss:+.4f}, {share}: too few documents to tell a difference from chance"
        told = {
            "lower": "the tuned model's loss is lower",
            "higher": "the tuned model's loss is HIGHER",
        }.get(self.direction, "no clear difference")
        return f"{told}: {self.loss:+.4f} (95% of {self.low:+.4f} to {self.high:+.4f}), {share}"


def difference(base: Mapping[Key, DocumentScore], tuned: Mapping[Key, DocumentScore], seed: int = 0) -> Difference:
    """Compare two models on the same documents. Raises ValueError if they were scored on others."""
    if {key: score.tokens for key, score in base.items()} != {key: score.tokens for key, score in tuned.items()}:
        raise ValueError("base and tuned model were scored on different documents")
    gain = np.array([tuned[key].nats - base[key].nats for key in base])
    tokens = np.array([score.tokens for score in base.values()], dtype=np.float64)
    loss = float(gain.sum() / tokens.sum())
    low = high = None
    direction: Direction = "too few documents"
    if len(gain) >= FEWEST_DOCUMENTS:
        low, high = (float(bound) for bound in np.percentile(drawn(gain, tokens, seed), [2.5, 97.5]))
        direction = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
    return Difference(
        loss=loss,
        low=low,
        high=high,
        documents=len(gain),
        improved=int((gain < 0).sum()),
        unchanged=int((gain == 0).sum()),
        direction=direction,
    )


def drawn(
    gain: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    tokens: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    seed: int,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the difference of the pooled losses in each draw of the documents."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(gain))
    found = []
    for first in range(0, DRAWS, at_once):
        chosen = generator.integers(len(gain), size=(min(at_once, DRAWS - first), len(gain)))
        found.append(gain[chosen].sum(axis=1) / tokens[chosen].sum(axis=1))
    return np.concatenate(found)
