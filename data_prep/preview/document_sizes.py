"""Measure the documents of a corpus before it is prepared: how many there are, and how many tokens each has."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.config import DataConfig
from data_prep.fetch.sources import check_any_readable
from data_prep.preview.survey import Estimate, check_usable, encoder_for, look, looked_at, of_all


@dataclass(frozen=True, kw_only=True)
class DocumentSizes:
    """Estimates for a whole corpus; `lengths` are the tokens of the sampled documents, each cut at 1 MiB of text.

    `rejected` counts the sampled records that cannot be used, by reason.
    """

    documents: float
    tokens: float
    lengths: npt.NDArray[np.int64]
    rejected: Mapping[str, int] = field(default_factory=dict)

    def percentile(self, share: float) -> int:
        """Return the length in tokens that this share of the sampled documents do not exceed."""
        return int(np.quantile(self.lengths, share, method="higher"))

    def longer_than(self, tokens: int) -> float:
        """Return the share of the sampled documents that have more tokens."""
        return float((self.lengths > tokens).mean())


def measure_documents(
    config: DataConfig, model_path: str | None, *, may_add_tokens: bool = False
) -> DocumentSizes | None:
    """Tokenize samples of the local sources as `prepare` will; None if `prepare` alone opens their files.

    Raises DataError or ConfigError for what `prepare` would refuse.
    """
    with tempfile.TemporaryDirectory() as folder:
        sources = [looked_at(source, Path(folder)) for source in config.sources if source.address is None]
        files = [file for source in sources for file in source.sampled]
        if not files:
            return None
        check_any_readable(files)
        size = sum(source.bytes for source in sources)
        encoder = encoder_for(config, model_path, files, size, may_add_tokens=may_add_tokens)
        found = [look(source, encoder, config.cleaning) for source in sources]
    for source, looked in zip(sources, found, strict=True):
        check_usable(source, looked)
    whole, lengths, rejected = Estimate(), [], Counter[str]()
    for source, looked in zip(sources, found, strict=True):
        whole += of_all(source, looked.whole)
        lengths.append(looked.lengths)
        rejected.update(looked.rejected)
    joined = np.concatenate(lengths)
    return DocumentSizes(documents=whole.documents, tokens=whole.tokens, lengths=joined, rejected=rejected)
