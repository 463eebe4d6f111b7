"""Which documents were in a step, with their text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

from cluster.errors import ConfigError
from data_prep.shards import ShardReader, read_manifest
from training.order import Order


def inspect_step(shards: Path, step: int, *, global_batch_rows: int, seed: int, characters: int) -> Iterator[str]:
    """Yield lines about the rows of a step (from 1): row, place, and for each piece its document and its text."""
    if step < 1:
        raise ConfigError(f"--step {step}: steps are counted from 1, as in metrics.jsonl")
    manifest = read_manifest(shards)
    reader = ShardReader(shards, manifest, "train", verify=False)
    order = Order(row_count=len(reader), global_batch_rows=global_batch_rows, seed=seed, data_digest=manifest.digest)
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    for place, row in enumerate(order.rows_of_step(step - 1)):
        arrays = reader.rows([row])
        yield f"row {row} (place {place} of the batch), {int(arrays.loss_mask.sum())} trained tokens"
        first = 0
        for piece in reader.pieces(row):
            ids = arrays.input_ids[0, first : first + piece.tokens].tolist()
            first += piece.tokens
            file = manifest.files[piece.source]
            text = " ".join(tokenizer.decode(ids).split())
            shown = text if len(text) <= characters else text[: characters - 3] + "..."
            start = f" from token {piece.start}" if piece.start else ""
            yield f"  {file.path}, record {piece.position}{start}, {piece.tokens} tokens: {shown}"
