"""Show which documents were in a step, with their text."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.documents import shortened
from data_prep.fetch.provenance import document_place, read_document
from data_prep.shards import ShardReader, read_manifest
from data_prep.shards.tokenizer_files import open_tokenizer
from launch.config import RunConfig
from training.order import order_of


def inspect_step(run: RunConfig, step: int, *, characters: int, originals: bool) -> Iterator[str]:
    """Yield lines about the rows of a step (from 1): each row, and for each segment its document and its text.

    The text is decoded from the tokens that the model saw; with `originals`, it is the document as it is in its file.
    """
    manifest = read_manifest(run.shards)
    reader = ShardReader(run.shards, manifest, "train", verify=False)
    order = order_of(manifest, run.train.global_batch_rows, run.seed)
    relative_to = {source.label: source.relative_to for source in run.data.sources}
    tokenizer = open_tokenizer(run.shards / "tokenizer")
    for place, row in enumerate(order.rows_of_step(step - 1)):
        arrays = reader.rows([row])
        yield f"row {row}, place {place} of the batch, {int(arrays.loss_mask.sum())} trained tokens"
        first = 0
        for piece in reader.pieces(row):
            ids = arrays.input_ids[0, first : first + piece.tokens].tolist()
            first += piece.tokens
            start = f", from its token {piece.start}" if piece.start else ""
            where = document_place(manifest.files[piece.source], piece.position)
            text = tokenizer.decode(ids)
            if originals:
                base = relative_to.get(manifest.files[piece.source].source)
                text = read_document(run.shards, manifest, piece.source, piece.position, base)
            shown = shortened(" ".join(text.split()), characters)
            yield f"  {where}{start}, {piece.tokens} tokens: {shown}"
