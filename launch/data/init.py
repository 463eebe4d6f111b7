"""`shardline init`: look at the data and the model, and write a commented YAML for a first run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from cluster.disk.atomic_files import write_text
from cluster.errors import EXIT_DONE, ConfigError
from data_prep.preview.first_look import look_at
from data_prep.rows.fields import PLACEHOLDER
from launch.first_run.choices import choose
from launch.first_run.facts import Machine, look_at_data, look_at_model
from launch.first_run.questions import ask, ask_yes, is_asking
from launch.first_run.run_yaml import KINDS, as_yaml
from launch.first_run.summary import summary
from launch.wording import say

SHAPES = KINDS
DATA = "data"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "kind", nargs="?", choices=tuple(SHAPES), help="the kind of your data; default: found by reading some of it"
    )
    command.add_argument("--data", help=f"your file, folder or glob (default: {DATA})")
    command.add_argument("--model", help="a Hugging Face folder or Hub id to fine-tune; default: a new small one")
    command.add_argument(
        "--lora", action=argparse.BooleanOptionalAction, help="train small adapters, not all weights (default: all)"
    )
    command.add_argument("--output", type=Path, default=Path("run.yaml"), help="default: %(default)s")
    command.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")


def run(options: argparse.Namespace) -> int:
    """Write a commented YAML for a first run; on a terminal, ask for what was not given."""
    data, model, lora = options.data, options.model, options.lora
    check_free(options.output)
    if is_asking(says_yes=options.yes):
        data = data or ask("Your data: a file, a folder or a glob", DATA)
        model = model or ask("Model to fine-tune: a folder or a Hub id", "", "none: a new small model") or None
        if model and lora is None:
            lora = ask_yes("Train small adapters (LoRA: less memory) rather than all weights?", default=False)
    say(write_init(options.kind, data or DATA, model, options.output, lora=bool(lora)))
    return EXIT_DONE


def check_free(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another --output, or remove it")


def write_init(kind: str | None, data: str, model: str | None, output: Path, *, lora: bool = False) -> str:
    """Write the YAML for some data; return what was found and chosen, and the next command.

    Without a `kind`, the data decides. Nothing is fetched.
    """
    check_free(output)
    if lora and model is None:
        raise ConfigError("--lora: adapters need a model to adapt; name one with --model")
    found = look_at(data)
    kind = kind or found.kind
    if kind is None:
        raise ConfigError(
            f"--data {data}: the kind of your data cannot be detected; name an existing file or folder, or give the "
            f"kind: `shardline init {' | '.join(SHAPES)}`"
        )
    machine = Machine.here()
    origin = look_at_model(model) if model else None
    facts = look_at_data(data, kind, found.lines, origin)
    choices = choose(facts, origin, machine, lora=lora)
    write_text(output, as_yaml(output, data, found.lines, facts, origin, choices))
    is_open = any(PLACEHOLDER in line for line in found.lines)
    then = f"replace each {PLACEHOLDER} in {output}, then " if is_open else ""
    told = "\n".join(summary(data, facts, origin, choices, machine))
    return f"{told}\nwritten        {output}\nnext: {then}shardline check {shlex.quote(str(output))}"
