"""The tokenizer of an export, in a form that transformers 4 and 5 read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from cluster.disk.atomic_files import write_json, write_text
from training.export.export_config import read_json
from training.export.export_template import plain_template

UNLIMITED = 10**20  # a length beyond this means "unknown": transformers writes 10**30
INTERNAL = ("backend", "is_local", "local_files_only", "name_or_path", "special_tokens_map_file")


def write_tokenizer(folder: Path, tokenizer: Any, config: PretrainedConfig) -> None:
    """Write the tokenizer for the model of `config`."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = {key: value for key, value in read_json(path).items() if key not in INTERNAL}
    if (folder / "tokenizer.json").is_file():
        values["tokenizer_class"] = "PreTrainedTokenizerFast"  # the class that both versions have
    # in transformers 4 that class also returns token type ids, which models add to the embeddings or refuse
    values["model_input_names"] = ["input_ids", "attention_mask"]
    values["model_max_length"] = longest_input(values.get("model_max_length"), config)
    if isinstance(values.get("extra_special_tokens"), list):  # transformers 4 fails on a list under this key
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    if isinstance(values.get("chat_template"), str):
        values["chat_template"] = plain_template(values["chat_template"])
    write_json(path, {key: value for key, value in values.items() if value is not None})
    for template in folder.rglob("*.jinja"):
        write_text(template, plain_template(template.read_text(encoding="utf-8")))


def longest_input(known: Any, config: PretrainedConfig) -> int | None:
    """Return the longest input in tokens: from the tokenizer, else the model's positions; None if there is no limit."""
    if isinstance(known, int | float) and 0 < known < UNLIMITED:
        return int(known)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
