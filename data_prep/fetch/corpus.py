"""Fetch what the sources name, list it as one corpus, and log what was found and what is not read."""

from __future__ import annotations

import logging
from pathlib import Path

from cluster.wording import count_of
from data_prep.config import DataConfig
from data_prep.fetch.sources import Corpus, find_corpus, notes_of, read_as
from data_prep.files.other_formats import advice_on

log = logging.getLogger(__name__)


def fetch_corpus(config: DataConfig, folder: Path) -> Corpus:
    """Fetch the files that are not in the cache yet, then list and hash every file."""
    downloads = fetch_addresses(config, folder)
    corpus = find_corpus(config.sources, downloads, folder / "unpacked", config.slice_bytes)
    log.info("corpus: %s, %d bytes", count_of(len(corpus.files), "file"), corpus.bytes)
    for label, suffixes in corpus.passed_over.items():
        log.info("%s: %s", label, read_as(corpus, label) or "no readable file")
        for note in notes_of(corpus, label):
            log.info("%s: %s", label, note)
        if suffixes:
            named = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.items())
            log.warning("%s: not read: %s%s", label, named, advice_on(suffixes))
    return corpus


def fetch_addresses(config: DataConfig, folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Return the fetched files of each source that has an address, from the cache where they are there already."""
    if all(source.address is None for source in config.sources):
        return {}
    from data_prep.fetch.remote_listing import fetch_sources  # httpx takes 0.2 s to import

    return fetch_sources(config.sources, folder)
