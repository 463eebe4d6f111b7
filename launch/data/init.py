"""`shardline init`: look at the data and the model, and write a commented YAML for a first run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from cluster.disk.atomic_files import write_text
from cluster.errors import EXIT_DONE, ConfigError, DataError
from cluster.progress import Waiting
from cluster.terminal import size_of
from data_prep.preview.first_look import FirstLook
from data_prep.preview.folder_look import look_at
from launch.first_run import questions
from launch.first_run.choices import choose
from launch.first_run.facts import (
    NOTHING_HERE,
    DataFacts,
    Machine,
    ModelFacts,
    look_at_data,
    look_at_model,
    lora_doubts,
    why_nothing_here,
)
from launch.first_run.named_settings import (
    NOTHING_NAMED,
    Named,
    named_by,
    open_settings,
    settings_of,
    with_named,
    with_settings,
)
from launch.first_run.next_command import OUTPUT, next_step, words_given
from launch.first_run.questions import ask, ask_data, ask_model, ask_open_lines, ask_yes, is_asking, tell
from launch.first_run.run_yaml import KINDS, as_yaml
from launch.first_run.summary import INDENT, summary, wrapped
from launch.wording import say

SHAPES = KINDS
DATA = "data"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "kind", nargs="?", choices=tuple(SHAPES), help="the kind of your data; default: found by reading some of it"
    )
    command.add_argument("--data", help=f"your file, folder or glob (default: {DATA})")
    command.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="KEY=COLUMN",
        help="which column holds what, such as prompt=Question; repeatable; default: found by reading some rows",
    )
    command.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="NAME=ROLE",
        help="who a speaker of the conversations is: user, assistant, system or tool; repeatable",
    )
    command.add_argument("--encoding", help="the encoding of your files, such as cp1252; default: UTF-8, or as marked")
    command.add_argument("--model", help="a Hugging Face folder or Hub id to fine-tune; default: a new small one")
    command.add_argument(
        "--lora", action=argparse.BooleanOptionalAction, help="train small adapters, not all weights (default: all)"
    )
    command.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    command.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")


def run(options: argparse.Namespace) -> int:
    """Write a commented YAML for a first run; on a terminal, ask for what was not given."""
    if is_asking(says_yes=options.yes):
        return asked(options)
    check_free(options.output)
    named = replace(named_by(options.field, options.role, options.encoding), says_yes=options.yes)
    say(write_init(options.kind, options.data or DATA, options.model, options.output, lora=options.lora, named=named))
    return EXIT_DONE


def asked(options: argparse.Namespace) -> int:
    """Ask for what the arguments leave open, then write the YAML."""
    if options.data is None or options.model is None:
        tell("Writes the settings of a run after a look at your data and the model; nothing is trained yet.")
        tell("Enter takes what stands in brackets, Tab completes names, Ctrl-C ends without writing anything.\n")
    questions.complete_paths()
    output = options.output
    if output.exists():
        taken = f"{output} exists already. Write to"
        output = Path(ask(taken, str(free_beside(output)), check=why_taken))
    data = options.data or ask_data(DATA, why_nothing_here)
    check_readable(data, options.kind)
    named = named_by(options.field, options.role, options.encoding)
    found = looked_at(data, named)
    if open_settings(found.lines):
        tell(f"{data}: {found.kind}, but not all of it can be found out by reading some rows.")
        named = replace(named, lines=ask_open_lines(found.lines))
    model = options.model or ask_model(look_at_model)
    lora = options.lora
    if model and lora is None:
        lora = ask_yes("Train small adapters (LoRA: less memory) rather than all weights?", default=False)
    tell("")
    kind = options.kind
    if kind is None and found.kind is None:
        kind = ask("What do the data hold?", "text", "/".join(SHAPES), questions.one_of(*SHAPES))
    with Waiting("reading a sample of the data"):
        said = write_init(kind, data, model, output, lora=lora, named=named)
    width = size_of(sys.stdout)[0]
    say("\n".join(wrapped(line, width, 0 if line.startswith("next") else INDENT) for line in said.splitlines()))
    return EXIT_DONE


def why_taken(name: str) -> str | None:
    return f"{name} exists already" if Path(name).exists() else None


def check_free(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another --output, or remove it")


def free_beside(output: Path) -> Path:
    """Return the first numbered name that is free."""
    number = 2
    while (name := output.with_stem(f"{output.stem}{number}")).exists():
        number += 1
    return name


def check_readable(data: str, kind: str | None) -> None:
    """Raise ConfigError if there is nothing to read; data of a given kind may come later."""
    problem = why_nothing_here(data) if kind is None else None
    if problem is not None:
        raise ConfigError(
            f"--data {data}: {problem}; for data that come later give their kind: `shardline init {' | '.join(SHAPES)}`"
        )


def looked_at(data: str, named: Named) -> FirstLook:
    """Return what was found by a look at the data, with what the user named.

    Raises ConfigError for files that need different settings, unless the columns are named.
    """
    if named.lines:
        return with_settings(look_at(data, settings_of(named.lines).get("encoding")), named.lines)
    found = look_at(data, named.encoding)
    if found.differing and not named.fields:
        raise ConfigError(f"--data {data}: {found.differing}")
    return with_named(found, named) if named else found


def write_init(
    kind: str | None,
    data: str,
    model: str | None,
    output: Path,
    *,
    lora: bool | None = None,
    named: Named = NOTHING_NAMED,
) -> str:
    """Write the YAML for some data; return what was found and chosen, and the next command.

    Without a `kind`, the data decides; what is `named` stands in the place of what was found. Nothing is fetched.
    Raises ConfigError for data that `prepare` would refuse.
    """
    check_free(output)
    if lora and model is None:
        raise ConfigError("--lora: adapters need a model to adapt; name one with --model")
    check_readable(data, kind)
    given = words_given(kind, data, model, output, lora, named)
    found = looked_at(data, named)
    check_kind(kind, found, data)
    kind = kind or found.kind
    if kind is None:
        raise ConfigError(f"--data {data}: its kind is not detected; give it: `shardline init {' | '.join(SHAPES)}`")
    machine = Machine.here()
    origin = look_at_model(model) if model else None
    facts = measured(data, kind, found, origin)
    if lora and origin is not None and kind != "text":
        origin = replace(origin, lora_doubts=lora_doubts(origin))
    choices = choose(facts, origin, machine, lora=bool(lora))
    write_text(output, as_yaml(output, data, found.lines, facts, origin, choices))
    told = "\n".join(summary(data, facts, origin, choices, machine))
    return f"{told}\nwritten        {output}\n{next_step(given, found, output)}"


def check_kind(kind: str | None, found: FirstLook, data: str) -> None:
    """Raise ConfigError for pairs and conversations that are asked for in running text: it would be trained whole."""
    if kind in ("pairs", "conversations") and found.kind == "text":
        raise ConfigError(
            f"--data {data}: holds running text, in which `prepare` finds no {kind}; make rows of it (docs/rows.md,"
            ' "Chats and transcripts"), name columns with --field, or train it as text: `shardline init text`'
        )


def measured(data: str, kind: str, found: FirstLook, origin: ModelFacts | None) -> DataFacts:
    """Measure the data. Raises ConfigError, with what to do, for data that are here and that `prepare` would refuse."""
    try:
        facts = look_at_data(data, kind, found, origin)
    except DataError as error:
        reason = str(error).removeprefix(f"data.sources: {data}: ")
        has_settings = any(f"{name}:" in reason for name in ("fields", "roles", "encoding"))
        more = ". Here these settings are the options --field, --role and --encoding" if has_settings else ""
        raise ConfigError(f"--data {data}: {reason}{more}") from None
    if found.lines and facts.unmeasured not in ("", NOTHING_HERE) and not open_settings(found.lines):
        raise ConfigError(f"--data {data}: {facts.unmeasured}")
    return facts
