"""The tokens of planned rows come from the right places, however many slices and rows there are."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.encode.encoded_slices import SliceTokens
from data_prep.pack.row_assembly import BATCH_ROWS, GATHER_TOKENS, RowFormat, gather_rows
from data_prep.pack.row_plan import RowPlan
from data_prep.shards.writing import PackedRows

PREPARE_WITH_FEW_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from data_prep.config import DataConfig
from data_prep.prepare import prepare
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
settings = {"row_tokens": 64, "packing": "best_fit", "workers": 1, "executor": "local", "slice_bytes": 1024}
config = DataConfig.model_validate(
    {"sources": [{"path": sys.argv[1]}], "tokenizer": {"train": {"vocab_size": 512}}, **settings}
)
manifest = prepare(config, Path(sys.argv[2]), None, seed=1)
print(len(list((Path(sys.argv[2]) / "work").glob("*.arrow"))), manifest.content_digest)
"""


def test_rows_are_written_from_more_slices_than_descriptors_and_are_the_same(tmp_path: Path) -> None:
    with (tmp_path / "text.jsonl").open("w") as stream:
        for number in range(500):
            stream.write(json.dumps({"text": f"document {number} of many says {number * number}. " * 2}) + "\n")

    def prepared(into: str, descriptors: int) -> list[str]:
        names = [str(tmp_path / "text.jsonl"), str(tmp_path / into), str(descriptors)]
        command = [sys.executable, "-c", PREPARE_WITH_FEW_DESCRIPTORS, *names]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        return said.stdout.split()

    slices, digest = prepared("few", 20)

    assert int(slices) > 20
    assert prepared("many", 1024) == [slices, digest]


def test_rows_that_are_gathered_in_several_goes_are_those_of_the_plan() -> None:
    row_tokens, vocab_size = GATHER_TOKENS // (2 * BATCH_ROWS), 300
    rows = 4 * BATCH_ROWS + 3  # the first 128 at once, the next 128, the last 3
    random = np.random.default_rng(0)
    slices = [slice_of(random, lengths) for lengths in ([40, 7, 900], [3, 500], [row_tokens])]
    documents = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
    lengths = [40, 7, 3, 500, 900, row_tokens]
    shuffled = random.permuted(np.tile(np.arange(5), (rows, 1)), axis=1)
    chosen: list[list[int]] = [
        [5] if number % 5 == 0 else row[: 1 + number % 5].tolist() for number, row in enumerate(shuffled)
    ]
    every = [document for row in chosen for document in row]

    plan = RowPlan(
        first=np.cumsum([0, *map(len, chosen)]),
        slice=np.array([documents[d][0] for d in every], np.int32),
        number=np.array([documents[d][1] for d in every], np.int32),
        start=np.zeros(len(every), np.int64),
        tokens=np.array([lengths[d] for d in every]),
        file=np.zeros(len(every), np.int32),
        position=np.array(every),
    )
    form = RowFormat(row_tokens=row_tokens, vocab_size=vocab_size, pad=299)
    batches = list(gather_rows(plan, slices.__getitem__, form))

    assert [len(batch.input_ids) for batch in batches] == [BATCH_ROWS] * 4 + [3]
    check_rows(batches, chosen, [slices[s].ids[slices[s].first[n] : slices[s].first[n + 1]] for s, n in documents])


def slice_of(random: np.random.Generator, lengths: list[int]) -> SliceTokens:
    count = sum(lengths)
    ids = random.integers(0, 299, count).astype(np.uint16)
    return SliceTokens(first=np.cumsum([0, *lengths]), ids=ids, mask=np.ones(count, np.uint8))


def check_rows(batches: list[PackedRows], chosen: list[list[int]], tokens: list[np.ndarray]) -> None:
    """Check rows against the documents that were chosen for each: ids, padding, and no first token trained."""
    found = (row for batch in batches for row in zip(batch.input_ids, batch.loss_mask, strict=True))
    for documents, (ids, mask) in zip(chosen, found, strict=True):
        expected = np.concatenate([tokens[document] for document in documents])
        trained = np.concatenate([np.arange(len(tokens[document])) > 0 for document in documents])
        assert (ids[: len(expected)] == expected).all() and (ids[len(expected) :] == 299).all()
        assert (mask[: len(expected)] == trained).all() and not mask[len(expected) :].any()
    assert [document for batch in batches for document in batch.position.tolist()] == list(chain.from_iterable(chosen))
