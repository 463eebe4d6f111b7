"""The YAML that `shardline init` writes: short, commented, and right for a first run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cluster.errors import ConfigError
from cluster.files import write_text

SHAPES = {
    "text": "files of running text: .txt, .md, .rst, .py",
    "pairs": 'JSONL rows such as {"prompt": "...", "completion": "..."} or {"question": "...", "answer": "..."}',
    "conversations": 'JSONL rows such as {"messages": [{"role": "user", "content": "..."}, ...]}',
}

TEMPLATE = """\
# A run of Shardline. `shardline check {file}` says what it will do before anything is done.
name: {name}                       # everything of the run goes to runs/{name}
seed: 0

data:
  sources:
    - path: {data}                 # a file, a folder or a glob; or  url: https://...
      # {shape}
  row_tokens: {row_tokens}                  # tokens the model sees at a time
  validation_fraction: 0.05        # held out, to be scored before and after
  # cleaning:                      # texts are repaired, repeated and nearly repeated ones left out; more by choice:
  #   private: {{email: replace, phone: replace}}
  #   languages: [en]
{tokenizer}
model:
{model}
train:
  epochs: {epochs}
  global_batch_rows: {batch}            # rows in a step, over all GPUs
  micro_batch_rows: 1              # rows a GPU takes at a time; raise it until memory is full
  learning_rate: {rate}
  save_every_steps: 100
  precision: bf16
"""

NEW_TOKENIZER = """\
  tokenizer:
    train: {vocab_size: 8192}      # made from the corpus itself
"""
NEW_MODEL = """\
  new:                             # a small model made from nothing
    model_type: llama
    config: {hidden_size: 384, intermediate_size: 1024, num_hidden_layers: 6, num_attention_heads: 6,
             num_key_value_heads: 6, tie_word_embeddings: true}
"""
CHATML = "  chat_template: chatml            # if the model has no chat template of its own; remove it if it has one\n"


def write_init(kind: str, data: str, model: str | None, output: Path) -> str:
    """Write the YAML for a kind of data; return what to type next."""
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another --output, or remove it")
    text = TEMPLATE.format(
        file=output,
        name=scalar(re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).lstrip("._-") or "run"),
        data=scalar(data),
        shape=SHAPES[kind],
        row_tokens=1024 if model else 512,
        tokenizer=(CHATML if kind == "conversations" else "") if model else NEW_TOKENIZER,
        model=f"  path: {scalar(model)}\n" if model else NEW_MODEL,
        epochs=3 if model else 1,
        batch=32,
        rate="2e-5" if model else "1e-3",
    )
    write_text(output, text)
    return f"{output}\nnext: shardline check {output}"


def scalar(text: str) -> str:
    """Return a text as YAML: plain where that is safe, else quoted, as JSON is."""
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9._/*-]*", text) else json.dumps(text, ensure_ascii=False)
