"""`shardline chat`: a conversation with the exported model, in the terminal."""

from __future__ import annotations

import argparse
import sys

from cluster.errors import EXIT_DONE
from launch.models.named_model import add_model, named_model, open_base, open_named, speaks_as_chat
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
        talk_at_terminal(session)
    else:
        talk_through_pipe(session, sys.stdin)
    return EXIT_DONE
