"""English text of any size: passages of real books, a few words of each changed so that none repeats another."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.trees import data_folder


def write_english(path: Path, size: int) -> int:
    """Write documents of 1 to 30 kB as .jsonl or .parquet until `size` bytes; return the bytes of text."""
    texts = [file.read_text(encoding="utf-8") for file in sorted((data_folder() / "books").glob("*.md"))]
    paragraphs = [text for whole in texts for text in whole.split("\n\n") if text.strip()]
    rng = random.Random(0)
    documents: list[str] = []
    written = 0
    while written < size:
        count = rng.randrange(5, 60)
        at = rng.randrange(len(paragraphs) - count)
        chosen = paragraphs[at : at + count]
        for number in range(0, count, 3):
            words = chosen[number].split(" ")
            one, other = rng.randrange(len(words)), rng.randrange(len(words))
            words[one], words[other] = words[other], words[one]
            chosen[number] = " ".join(words)
        documents.append(f"Part {rng.randrange(10**9)}\n\n" + "\n\n".join(chosen))
        written += len(documents[-1].encode())
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": documents}), path, row_group_size=500)
    else:
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    return written


def write_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE of 32,000 tokens on the books."""
    from data_prep.encode.tokenizer import train_tokenizer

    texts = [file.read_text(encoding="utf-8") for file in sorted((data_folder() / "books").glob("*.md"))]
    train_tokenizer(texts, 32_000).save_pretrained(folder)
