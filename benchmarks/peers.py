"""One preparation, ours or a peer's: `python -m benchmarks.peers VARIANT INPUT TOKENIZER OUTPUT`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROW_TOKENS = 1024


def shardline(source: str, tokenizer: str, output: str, workers: int = 1) -> None:
    from data_prep.config import DataConfig
    from data_prep.prepare import prepare

    settings = {"row_tokens": ROW_TOKENS, "workers": workers, "executor": "local", "validation_fraction": 0.0}
    config = DataConfig.model_validate({"sources": [{"path": source}], "tokenizer": {"path": tokenizer}, **settings})
    prepare(config, Path(output), None, seed=0)


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


if __name__ == "__main__":
    variant, *arguments = sys.argv[1:]
    {"shardline": shardline, "hf_datasets": hf_datasets, "ray_data": ray_data}[variant](*arguments)
