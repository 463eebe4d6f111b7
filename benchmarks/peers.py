"""One preparation, ours or a peer's: `python -m benchmarks.peers VARIANT INPUT TOKENIZER OUTPUT`.

Every one runs on one worker. What the peers need is not among Shardline's dependencies:

    pip install --target build/peers --no-deps datatrove==0.10.1 humanize loguru orjson megatron-core==0.16.1
    export PYTHONPATH=$PWD:$PWD/build/peers
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROW_TOKENS = 1024


def shardline(source: str, tokenizer: str, output: str, **cleaning: str) -> None:
    from data_prep.config import DataConfig
    from data_prep.prepare import prepare

    settings = {"row_tokens": ROW_TOKENS, "workers": 1, "executor": "local", "validation_fraction": 0.0}
    settings["cleaning"] = cleaning
    config = DataConfig.model_validate({"sources": [{"path": source}], "tokenizer": {"path": tokenizer}, **settings})
    prepare(config, Path(output), None, seed=0)


def shardline_light(source: str, tokenizer: str, output: str) -> None:
    """Clean and look for equal documents, but not for nearly equal ones: no peer here does either."""
    shardline(source, tokenizer, output, near_duplicates="off")


def grouped(ids: Iterable[list[int]], eos: int) -> list[list[int]]:
    flat = [token for document in ids for token in (*document, eos)]
    return [flat[at : at + ROW_TOKENS] for at in range(0, len(flat) - ROW_TOKENS + 1, ROW_TOKENS)]


def hf_datasets(source: str, tokenizer: str, output: str) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    kind = Path(source).suffix.removeprefix(".").replace("jsonl", "json")
    rows = datasets.load_dataset(kind, data_files=source, split="train", cache_dir=f"{output}/cache")
    encoded = rows.map(
        lambda batch: {"input_ids": fast(batch["text"])["input_ids"]}, batched=True, remove_columns="text"
    )
    packed = encoded.map(lambda batch: {"input_ids": grouped(batch["input_ids"], fast.eos_token_id)}, batched=True)
    packed.save_to_disk(f"{output}/saved")


class Encode:
    def __init__(self, tokenizer: str) -> None:
        from transformers import PreTrainedTokenizerFast

        self.fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        ids = self.fast([str(text) for text in batch["text"]])["input_ids"]
        return {"input_ids": grouped(ids, self.fast.eos_token_id)}


def ray_data(source: str, tokenizer: str, output: str) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    read = ray.data.read_parquet if source.endswith(".parquet") else ray.data.read_json
    rows = read(source).map_batches(Encode, fn_constructor_args=(tokenizer,), concurrency=1, batch_size=256)
    rows.write_parquet(f"{output}/parquet")
    ray.shutdown()


def datatrove(source: str, tokenizer: str, output: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader, ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    reader = ParquetReader if source.endswith(".parquet") else JsonlReader
    path = Path(source)
    steps = [
        reader(str(path.parent), glob_pattern=path.name),
        DocumentTokenizer(f"{output}/tokens", f"{tokenizer}/tokenizer.json", eos_token="<|endoftext|>"),
    ]
    LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=f"{output}/logs").run()


class MegatronEncoder:
    """What a worker of Megatron-LM's tools/preprocess_data.py does: a line of JSON to ids and their number."""

    fast: Any

    def __init__(self, tokenizer: str) -> None:
        self.tokenizer = tokenizer

    def initializer(self) -> None:
        from transformers import PreTrainedTokenizerFast

        MegatronEncoder.fast = PreTrainedTokenizerFast.from_pretrained(self.tokenizer)

    def encode(self, line: str) -> tuple[list[int], int]:
        ids = [*self.fast(json.loads(line)["text"])["input_ids"], self.fast.eos_token_id]
        return ids, len(ids)


def megatron(source: str, tokenizer: str, output: str) -> None:
    """Preprocess as the tool does, which is in no package, with megatron-core's own builder of the indexed dataset."""
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    Path(output).mkdir()
    encoder = MegatronEncoder(tokenizer)
    builder = IndexedDatasetBuilder(f"{output}/text.bin", dtype=np.uint16)
    with Path(source).open(encoding="utf-8") as lines, multiprocessing.Pool(1, initializer=encoder.initializer) as pool:
        for ids, size in pool.imap(encoder.encode, lines, 32):
            builder.add_document(ids, [size])
    builder.finalize(f"{output}/text.idx")


VARIANTS = {f.__name__: f for f in (shardline, shardline_light, hf_datasets, ray_data, datatrove, megatron)}

if __name__ == "__main__":
    variant, *arguments = sys.argv[1:]
    VARIANTS[variant](*arguments)
