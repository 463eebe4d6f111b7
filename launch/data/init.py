"""`shardline init`: write a short, commented YAML for a first run."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from cluster.disk.atomic_files import write_text
from cluster.errors import EXIT_DONE, ConfigError
from data_prep.preview.first_look import look_at
from data_prep.rows.fields import PLACEHOLDER
from launch.wording import say

ROW_TOKENS = 1024  # for a model that is fine-tuned
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
{fields}  row_tokens: {row_tokens}                  # tokens the model sees at a time
  validation_fraction: 0.05        # held out, to be scored before and after
  # cleaning:                      # texts are repaired, duplicates and near duplicates removed; also:
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
    train: {vocab_size: 8192}      # trained on the corpus itself
"""
NEW_MODEL = """\
  new:                             # a small model with random weights
    model_type: llama
    config: {hidden_size: 384, intermediate_size: 1024, num_hidden_layers: 6, num_attention_heads: 6,
             num_key_value_heads: 6, tie_word_embeddings: true}
"""
OWN_TEMPLATE = "  # chat_template:                 # {reason}\n"
CHATML = "  chat_template: chatml            # {reason}\n"
PLAIN = """\
  chat_template: plain             # {reason}
                                   # or, with new tokens: chatml, and resize_embeddings: true below model
"""
UNSEEN = """\
  # chat_template: plain           # {model} is not on this machine: shardline check fetches it and says whether its
                                   # tokenizer has a chat template of its own; if it has none, write this line
"""
TEMPLATE_LINES = {None: OWN_TEMPLATE, "chatml": CHATML, "plain": PLAIN}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "kind", nargs="?", choices=tuple(SHAPES), help="the kind of your data; default: found by reading some of it"
    )
    command.add_argument("--data", default="data", help="your file, folder or glob (default: %(default)s)")
    command.add_argument("--model", help="a Hugging Face folder or Hub id to fine-tune; default: a new small one")
    command.add_argument("--output", type=Path, default=Path("run.yaml"), help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Write a commented YAML for a first run."""
    say(write_init(options.kind, options.data, options.model, options.output))
    return EXIT_DONE


def write_init(kind: str | None, data: str, model: str | None, output: Path) -> str:
    """Write the YAML for some data; return its path and the next command. Without a `kind`, the data decides."""
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another --output, or remove it")
    found = look_at(data)
    kind = kind or found.kind
    if kind is None:
        raise ConfigError(
            f"--data {data}: the kind of your data cannot be detected; name an existing file or folder, or give the "
            f"kind: `shardline init {' | '.join(SHAPES)}`"
        )
    folder = folder_here(model) if model else None
    text = TEMPLATE.format(
        file=output,
        name=scalar(re.sub(r"[^A-Za-z0-9._-]+", "-", output.stem).lstrip("._-") or "run"),
        data=scalar(data),
        shape=SHAPES[kind],
        fields="".join(
            f"      {' '.join(line.splitlines())}\n" for line in found.lines
        ),  # a file name may hold a line break
        row_tokens=longest_rows(folder) if model else 512,
        tokenizer=(template_lines(model, folder) if kind == "conversations" else "") if model else NEW_TOKENIZER,
        model=f"  path: {scalar(model)}\n" if model else NEW_MODEL,
        epochs=3 if model else 1,
        batch=32,
        rate="2e-5" if model else "1e-3",
    )
    write_text(output, text)
    is_open = any(PLACEHOLDER in line for line in found.lines)
    choose = f"replace each {PLACEHOLDER} in {output}, then " if is_open else ""
    return f"{output}\nnext: {choose}shardline check {output}"


def folder_here(model: str) -> Path | None:
    """Return the folder of a local model or of one that was fetched before; nothing is fetched.

    Raises ConfigError if the name can only be a local folder, and there is none.
    """
    from cluster.model_files import cached_folder, found_folder, looks_local

    is_here = looks_local(model) or Path(model).expanduser().exists()
    return found_folder(model, "--model") if is_here else cached_folder(model)


def longest_rows(folder: Path | None) -> int:
    """Return the tokens in a row for a first run: ROW_TOKENS, or fewer if the model has fewer positions."""
    from cluster.model_files import CONFIG, read_settings

    settings = read_settings(folder / CONFIG) if folder else {}
    positions = settings.get("max_position_embeddings") or settings.get("n_positions") or ROW_TOKENS
    return min(ROW_TOKENS, int(positions) // 8 * 8)  # row_tokens are a multiple of 8


def template_lines(model: str, folder: Path | None) -> str:
    """Return the YAML lines for the chat template that suits a model's tokenizer, with the reason."""
    from data_prep.encode.tokenizer import choose_template
    from data_prep.shards.tokenizer_files import open_tokenizer

    if folder is None:
        return UNSEEN.format(model=model)
    name, reason = choose_template(open_tokenizer(folder))
    return TEMPLATE_LINES[name].format(reason=reason)


def scalar(text: str) -> str:
    """Return a text as a YAML scalar: plain where that is safe, else quoted as in JSON."""
    return text if re.fullmatch(r"[A-Za-z./][A-Za-z0-9._/*-]*", text) else json.dumps(text, ensure_ascii=False)
