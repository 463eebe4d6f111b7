"""How often the documents of each source are trained on: epochs of its own, or a weight in the mixture."""

from __future__ import annotations

import numpy as np

from cluster.errors import ConfigError
from data_prep.arrays import Integers
from data_prep.config import DataConfig
from data_prep.fetch.sources import Corpus
from data_prep.select.dedup_and_split import Documents


def mixed(
    config: DataConfig, corpus: Corpus, documents: Documents, numbers: Integers
) -> tuple[Integers, dict[str, float]]:
    """Return the training documents `numbers`, each as often as its source says, and the epochs by source.

    Epoch after epoch; of a last part of an epoch those documents whose hash is low, so that another source's size
    moves none of them. No epochs are returned if each source is seen once, as where nothing is said of them.
    Raises ConfigError if only some sources have a weight.
    """
    labels = [file.info.source for file in corpus.files]
    sizes = np.bincount(documents.file[numbers], weights=documents.tokens[numbers], minlength=len(labels))
    tokens = {label: 0 for label in labels}
    for label, size in zip(labels, sizes.tolist(), strict=True):
        tokens[label] += int(size)
    epochs = epochs_of(config, tokens)
    if all(value == 1 for value in epochs.values()):
        return numbers, {}
    # A document is in round n if its source is seen more than n times and, in a last part of an epoch, if its own hash
    # as a fraction of 2^64 is below what is left: half an epoch takes the half of the documents with the low hashes.
    wanted = np.array([epochs[label] for label in labels])[documents.file[numbers]]
    draw = documents.key[numbers, 1] / 2.0**64
    rounds = [numbers[wanted - number > draw] for number in range(int(np.ceil(wanted.max(initial=0))))]
    return np.concatenate([numbers[:0], *rounds]), epochs


def epochs_of(config: DataConfig, tokens: dict[str, int]) -> dict[str, float]:
    """Return the epochs of each source.

    With weights, the sources' tokens are as the weights, and none is seen more often than its `epochs`: the one that
    is scarcest for its weight is seen so often, the others are thinned out or repeated.
    """
    most = {source.label: source.epochs for source in config.sources}
    weights = {source.label: source.weight for source in config.sources if source.weight is not None}
    if not weights:
        return most
    missing = sorted(set(most) - set(weights))
    if missing:
        raise ConfigError(
            f"data.sources: {', '.join(missing)} without `weight`, though other sources have one; give all or none"
        )
    scale = min(most[label] * tokens[label] / weight for label, weight in weights.items() if tokens[label])
    return {label: scale * weight / tokens[label] if tokens[label] else 1.0 for label, weight in weights.items()}
