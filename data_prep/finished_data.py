"""Whether a folder already holds the data that a configuration describes."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from cluster.disk.atomic_files import digest_of
from cluster.errors import DataError
from data_prep.clean.cleaning import CLEANING_VERSION
from data_prep.clean.near_duplicates import SIGNATURE_VERSION
from data_prep.config import DataConfig
from data_prep.encode.conversations import read_template
from data_prep.encode.encoded_slices import SLICE_VERSION
from data_prep.encode.tokenizer import tokenizer_origin
from data_prep.fetch.sources import Corpus
from data_prep.pack.packing import PACKING_VERSION
from data_prep.pack.row_plan import packing_method
from data_prep.select.held_out_passages import HELD_OUT_VERSION
from data_prep.shards import FORMAT_VERSION, MANIFEST, Manifest, check_shards, read_manifest

log = logging.getLogger(__name__)


def config_digest(
    config: DataConfig, corpus: Corpus, model_path: str | None, seed: int, *, may_add_tokens: bool
) -> str:
    """Return the digest of everything that determines the shards and the manifest."""
    added = {"may_add_tokens": True} if may_add_tokens and config.chat_template == "chatml" else {}
    return digest_of(
        {
            **added,
            "versions": [FORMAT_VERSION, SLICE_VERSION],
            "files": [[asdict(file.info), asdict(file.columns)] for file in corpus.files],
            "tokenizer": tokenizer_origin(config, model_path),
            "chat_template": read_template(config.chat_template, None),
            "train_on": config.train_on,
            "mixture": [[source.label, source.epochs, source.weight] for source in config.sources],
            "rows": [PACKING_VERSION, config.row_tokens, packing_method(config, corpus), config.shard_rows],
            "held_out": [HELD_OUT_VERSION, config.validation, config.validation_fraction, config.test_fraction],
            "cleaning": [CLEANING_VERSION, SIGNATURE_VERSION, config.cleaning.model_dump(mode="json")],
            "seed": seed,
        }
    )


def finished_manifest(folder: Path, digest: str) -> Manifest | None:
    """Return the folder's manifest if its digest is `digest` and all of its shards exist in full; else None."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(folder)
        check_shards(folder, [*manifest.others, *(shard for shards in manifest.splits.values() for shard in shards)])
    except DataError as error:
        log.warning("preparing again: %s", error)
        return None
    if manifest.config_digest != digest:
        log.info("preparing again: the data's configuration or files have changed")
        return None
    return manifest
