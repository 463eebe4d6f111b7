"""`shardline chat`: a conversation with the exported model, in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cluster.errors import EXIT_DONE
from launch.models.named_model import NamedModel, add_model, named_model, open_base, open_named, speaks_as_chat
from launch.talk.chat_loop import talk_at_terminal, talk_through_pipe
from launch.talk.generator import BASE, TUNED, Generator
from launch.talk.prompts import checked
from launch.talk.sampling_flags import add_sampling, sampling_of
from launch.talk.session import Session
from launch.talk.terminal import DIM, Screen


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    command.add_argument("--compare", action="store_true", help="show the base model's answer before the tuned one's")
    add_sampling(command, tokens=512)


def run(options: argparse.Namespace) -> int:
    """Talk until the input ends."""
    if options.system is not None:
        checked(options.system, "--system")
    sampling, named, screen = sampling_of(options), named_model(options), Screen()
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        screen.say(f"loading {named.folder} ...", DIM)
    model, tokenizer = open_named(named)
    generator = Generator(
        models={**({BASE: open_base(named, tokenizer)} if options.compare else {}), TUNED: model},
        tokenizer=tokenizer,
        as_chat=speaks_as_chat(named, tokenizer),
        system=options.system,
        sampling=sampling,
    )
    session = Session(generator, named.name, screen)
    if is_terminal:
        talk_at_terminal(session, about(named, model, as_chat=session.as_chat))
    else:
        talk_through_pipe(session, sys.stdin)
    return EXIT_DONE


def about(named: NamedModel, model: Any, *, as_chat: bool) -> str:
    """Return what the model is: its size, its checkpoint, its template, how much it sees."""
    from training.export.export_record import RECORD, read_record
    from training.generate.answers import positions

    words = [f"{model.num_parameters():,} parameters"]
    if (named.folder / RECORD).is_file():
        words.append(f"step {read_record(named.folder).step:,}")
    if named.run is not None and as_chat:
        words.append(f"chat template {named.run.data.chat_template or 'of its own'}")
    if (seen := positions(model)) is not None:
        words.append(f"sees {seen:,} tokens")
    return ", ".join(words)
