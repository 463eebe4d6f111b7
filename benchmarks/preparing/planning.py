"""CPU time and peak memory of planning rows over 1, 4 and 16 million simulated documents of about 1 KB.

Each size runs in a process of its own. One in twenty is a near copy of another, one in a hundred has no signature, as
if it were short, and the marks of another. Slices are made when they are looked at, which the times do not count; a
real slice is mapped from its file then.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.clean.near_duplicates import BINS, MARK_BYTES, NO_WORDS, Sketches
from data_prep.config import CleaningConfig, DataConfig, SourceConfig
from data_prep.encode.encoded_slices import EncodedSlice, whole_mask
from data_prep.fetch.sources import Corpus, CorpusFile
from data_prep.pack.row_plan import make_plan
from data_prep.read.byte_ranges import HashedFile
from data_prep.read.parts import Columns, FilePart
from data_prep.shards import SourceFile

Packing = Literal["concat", "best_fit"]

MILLIONS = (1, 4, 16)
DOCUMENTS = 2**14  # of a slice of 16 MiB
MARKS = 58  # of 170 words
COPIES, SHARED = 0.05, 0.01


class SimulatedSlices(Sequence[EncodedSlice]):
    """So many slices, the same whenever they are asked for; `spent_s` is the CPU time that making them took."""

    def __init__(self, count: int) -> None:
        self.slices = count
        self.spent_s = 0.0
        self.first = self.made(0)

    def __len__(self) -> int:
        return self.slices

    def __getitem__(self, index: int) -> EncodedSlice:  # type: ignore[override]
        began = time.process_time()
        table = self.made(index) if index else self.first
        self.spent_s += time.process_time() - began
        return table

    def __iter__(self) -> Iterator[EncodedSlice]:
        return (self[index] for index in range(self.slices))

    def made(self, index: int) -> EncodedSlice:
        """Return a slice of which some documents are like those in their places in the first, which are as random."""
        random = np.random.default_rng(index)
        signature = np.frombuffer(random.bytes(DOCUMENTS * BINS), np.uint8).reshape(DOCUMENTS, BINS).copy()
        marks = np.frombuffer(random.bytes(DOCUMENTS * MARKS * MARK_BYTES), np.uint8).reshape(DOCUMENTS, -1).copy()
        marks[:, ::MARK_BYTES] |= 1
        if index:
            copies = np.flatnonzero(random.random(DOCUMENTS) < COPIES)
            kept = random.random((len(copies), BINS)) < 0.85
            signature[copies] = np.where(kept, self.first.signature[copies], signature[copies])
            shared = np.flatnonzero(random.random(DOCUMENTS) < SHARED)
            signature[shared] = NO_WORDS
            marks[shared] = self.first.sketches.data.reshape(DOCUMENTS, -1)[shared]
        tokens = np.clip(random.lognormal(5.2, 0.7, DOCUMENTS), 5, 20_000).astype(np.int64)
        first = np.concatenate([[0], np.cumsum(tokens)])
        return EncodedSlice(
            part=np.zeros(DOCUMENTS, np.int32),
            record=np.arange(DOCUMENTS, dtype=np.int64),
            key=random.integers(0, 2**64, (DOCUMENTS, 2), dtype=np.uint64),
            first=first,
            ids=np.broadcast_to(np.uint16(1), first[-1]),
            trained=tokens - 1,
            mask=whole_mask([None], [first[-1]]),
            signature=signature,
            sketches=Sketches(marks.ravel(), np.arange(DOCUMENTS + 1) * MARKS),
            records=[DOCUMENTS],
            rejected=[{}],
            changed=[{}],
            samples=[],
        )


def measure(millions: int, packing: Packing) -> None:
    """Plan the rows of so many documents; print what it took as a line of JSON."""
    columns = Columns(shape="text")
    count = millions * 10**6 // DOCUMENTS
    info = SourceFile(source="simulated", path="simulated", bytes=1, sha256="")
    corpus = Corpus(
        files=[CorpusFile(info=info, location=Path(), columns=columns, hashed=HashedFile("", 1))],
        passed_over={"simulated": {}},
    )
    config = DataConfig(
        sources=[SourceConfig.model_validate({"path": "simulated"})],
        packing=packing,
        row_tokens=2048,
        cleaning=CleaningConfig(),
    )
    slices = [(FilePart(file=0, location="", start=0, end=1, columns=columns),)] * count
    tables = SimulatedSlices(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    plan = make_plan(config, corpus, slices, tables, 0, lambda: np.zeros(2**16, np.uint8))
    cpu_s = time.process_time() - began - tables.spent_s
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    (entry,) = plan.counts.values()
    line = {
        "case": "planning",
        "packing": packing,
        "documents": count * DOCUMENTS,
        "cpu_s": round(cpu_s, 1),
        "cpu_s_per_million": round(cpu_s / (count * DOCUMENTS / 1e6), 2),
        "bytes_per_document": round(peak / (count * DOCUMENTS)),
        "rejected": entry["rejected"],
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    for packing in ("concat", "best_fit"):
        for millions in MILLIONS:
            command = f"from benchmarks.preparing.planning import measure; measure({millions}, {packing!r})"
            subprocess.run([sys.executable, "-c", command], check=True, env=os.environ)
