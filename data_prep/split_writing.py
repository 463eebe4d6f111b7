"""Write the planned rows of every split as shards, and describe them in a manifest."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import fsync_path
from cluster.progress import counted
from cluster.wording import count_of
from data_prep.config import DataConfig
from data_prep.encode.encoding import EncoderSpec
from data_prep.encode.tokenizer import DataTokenizer, digest_of_rules
from data_prep.fetch.sources import Corpus
from data_prep.pack.row_assembly import RowFormat, ShardTask, write_rows
from data_prep.pack.row_plan import PackingPlan, packing_method, shard_plans
from data_prep.select.ledger import count_tokens
from data_prep.shards import FORMAT_VERSION, MANIFEST, SPLITS, Manifest, ShardInfo, template_digest
from data_prep.shards.tokenizer_files import vocabulary_size
from data_prep.shards.writing import row_schema, write_split_files

log = logging.getLogger(__name__)

MapSlices = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def retract_manifest(folder: Path) -> None:
    """Remove the manifest and the old splits before shards change: an old manifest must never describe new shards."""
    if (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink()
        fsync_path(folder)
    for split in SPLITS:
        shutil.rmtree(folder / split, ignore_errors=True)


def write_splits(
    config: DataConfig,
    folder: Path,
    spec: EncoderSpec,
    plan: PackingPlan,
    slices: Sequence[Path],
    map_slices: MapSlices,
) -> dict[str, list[ShardInfo]]:
    """Write the shards of every split and return them; a split without rows gets no folder."""
    began = time.monotonic()
    row_format = RowFormat(row_tokens=config.row_tokens, vocab_size=spec.vocab_size, pad=spec.pad)
    tasks = [
        ShardTask(
            target=folder / relative,
            relative=relative,
            format=row_format,
            slices={int(number): slices[int(number)] for number in set(rows.slice.tolist())},
            plan=rows,
        )
        for split in SPLITS
        for relative, rows in shard_plans(split, plan.splits[split], config.shard_rows)
    ]
    rows = [task.plan.rows for task in tasks]
    shards: list[ShardInfo] = list(counted(map_slices(write_rows, tasks), rows, "writing", sum(rows), "rows"))
    splits = {split: [shard for shard in shards if shard.path.startswith(f"{split}/")] for split in SPLITS}
    for split, infos in splits.items():
        if infos:
            write_split_files(folder / split, infos, row_schema(config.row_tokens, spec.vocab_size), split)
    rows_written = sum(shard.rows for shard in shards)
    told = f"{count_of(rows_written, 'row')} in {count_of(len(shards), 'shard')}"
    log.info("wrote %s, %.1f s", told, time.monotonic() - began)
    return splits


def describe(
    config: DataConfig,
    corpus: Corpus,
    loaded: DataTokenizer,
    plan: PackingPlan,
    splits: dict[str, list[ShardInfo]],
    digest: str,
) -> Manifest:
    """Return the manifest of what was written. Raises DataError if tokens were lost or duplicated."""
    tokenizer = loaded.tokenizer
    shards = [shard for infos in splits.values() for shard in infos]
    may_be_trained = range(plan.trained - plan.cuts, plan.trained + 1)
    return Manifest(
        version=FORMAT_VERSION,
        config_digest=digest,
        tokenizer_digest=digest_of_rules(tokenizer),
        template_digest=template_digest(tokenizer.chat_template),
        row_tokens=config.row_tokens,
        vocab_size=vocabulary_size(tokenizer),
        packing=packing_method(config, corpus),
        files=[file.info for file in corpus.files],
        splits=splits,
        documents=plan.counts,
        tokens=count_tokens(shards, config.row_tokens, plan.tokens, may_be_trained),
        conversational=plan.conversational,
        added_tokens=loaded.added_tokens,
        fill={split: fill(infos, config.row_tokens) for split, infos in splits.items() if infos},
    )


def fill(shards: Sequence[ShardInfo], row_tokens: int) -> float:
    """Return the share of the rows' tokens that are documents; the rest is padding."""
    return round(sum(s.tokens for s in shards) / (sum(s.rows for s in shards) * row_tokens), 6)
