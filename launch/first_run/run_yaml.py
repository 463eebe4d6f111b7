"""Write the chosen numbers as a commented YAML."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from launch.first_run.choices import Choices, Chosen
from launch.first_run.facts import DataFacts, ModelFacts

COLUMN = 34  # where comments begin
KINDS = {
    "text": "files of running text: .txt, .md, .rst, .py",
    "pairs": 'JSONL rows such as {"prompt": "...", "completion": "..."} or {"question": "...", "answer": "..."}',
    "conversations": 'JSONL rows such as {"messages": [{"role": "user", "content": "..."}, ...]}',
}


def as_yaml(
    output: Path, path: str, lines: Sequence[str], facts: DataFacts, model: ModelFacts | None, it: Choices
) -> str:
    """Return the YAML of a run."""
    name = run_name(output.stem)
    return "\n".join(
        [
            f"# A run of Shardline. `shardline check {one_line(shlex.quote(str(output)))}` says what it will do.",
            f"name: {noted(scalar(name), f'everything of the run goes to runs/{name}', 6)}",
            "seed: 0",
            "",
            "data:",
            "  sources:",
            f"    - path: {noted(scalar(path), 'a file, a folder or a glob; or  url: https://...', 12)}",
            f"      # {KINDS[facts.kind]}",
            *(f"      {one_line(line)}" for line in lines),
            number("  row_tokens", it.row_tokens),
            number("  validation_fraction", it.validation_fraction),
            *tokenizer_lines(facts, model),
            "  # cleaning:                    # texts are repaired, duplicates and near duplicates removed; also:",
            "  #   private: {email: replace, phone: replace}",
            "  #   languages: [en]",
            "",
            "model:",
            *model_lines(model, it, is_measured=facts.sizes is not None),
            "",
            "train:",
            number("  epochs", it.epochs),
            number("  global_batch_rows", it.batch),
            number("  micro_batch_rows", it.micro),
            number("  learning_rate", it.rate),
            number("  warmup_fraction", it.warmup),
            number("  save_every_steps", it.save),
            f"  precision: {noted(it.precision[0], it.precision[1], 13)}",
            *lora_lines(it),
            "",
        ]
    )


def run_name(stem: str) -> str:
    """Return the name of a run for a file's: of letters without accents, digits, `.`, `_` and `-`."""
    for letter, plain in (("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("Ä", "Ae"), ("Ö", "Oe"), ("Ü", "Ue"), ("ß", "ss")):
        stem = unicodedata.normalize("NFC", stem).replace(letter, plain)
    stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-") or "run"


def tokenizer_lines(facts: DataFacts, model: ModelFacts | None) -> list[str]:
    """Return the lines on the tokenizer of a new model, or on the chat template of one that is fine-tuned."""
    if model is None:
        return [
            "  tokenizer:",
            f"    train: {noted(f'{{vocab_size: {facts.vocab_size}}}', 'trained on the corpus', 11)}",
        ]
    if not facts.is_talk:
        return []
    if model.folder is None:
        return [
            f"  # chat_template: plain           # {one_line(model.name)} is not on this machine:",
            "                                 # `shardline check` fetches it and says if its tokenizer lacks a chat",
            "                                 # template; if it does, write this line",
        ]
    if model.template is None:
        return [f"  # chat_template:               # {model.template_reason}"]
    lines = [f"  chat_template: {noted(model.template, model.template_reason, 17)}"]
    if model.template == "plain":
        more = "or, with new tokens: chatml, and resize_embeddings: true below model"
        lines.append(" " * (COLUMN - 1) + f"# {more}")
    return lines


def model_lines(model: ModelFacts | None, it: Choices, *, is_measured: bool) -> list[str]:
    """Return the lines below `model:`."""
    if model is not None:
        size = f"{model.parameters:,} parameters" if model.parameters else "not on this machine yet"
        return [f"  path: {noted(scalar(model.name), size, 8)}"]
    assert it.shape is not None
    fit = ": for this much text" if is_measured else ""
    return [
        f"  new:                           # random weights, about {it.parameters:,} parameters{fit}",
        "    model_type: llama",
        f"    config: {{hidden_size: {it.shape.hidden}, intermediate_size: {it.shape.inner},"
        f" num_hidden_layers: {it.shape.layers},",
        f"             num_attention_heads: {it.shape.heads}, num_key_value_heads: {it.shape.heads},"
        " tie_word_embeddings: true}",
    ]


def lora_lines(it: Choices) -> list[str]:
    if it.method != "lora":
        return []
    return ["  lora: {rank: 16, alpha: 32}    # small adapters beside all linear layers; the model's weights stay"]


def number(key: str, chosen: Chosen) -> str:
    """Return a line with a key, its value and the reason."""
    value = f"{chosen.value:g}" if chosen.value < 1 else str(int(chosen.value))
    return f"{key}: {noted(value, chosen.reason, len(key) + 2)}"


def noted(value: str, reason: str, at: int) -> str:
    """Return a value that begins at this column, followed by a comment."""
    return f"{value:<{max(COLUMN - 1 - at, len(value) + 2)}}# {one_line(reason)}"


def one_line(text: str) -> str:
    """Return a text without line breaks, which a file name may hold."""
    return " ".join(text.splitlines())


def scalar(text: str) -> str:
    """Return a text as a YAML scalar: plain where that is safe, else quoted as in JSON."""
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9._/*-]*", text) else json.dumps(text, ensure_ascii=False)
