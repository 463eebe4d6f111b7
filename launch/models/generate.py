"""`shardline generate`: answer prompts with the exported model."""

from __future__ import annotations

import argparse
import sys

from cluster.errors import EXIT_DONE, ConfigError
from launch.arguments import not_negative, positive
from launch.models.named_model import add_model, named_model
from launch.wording import say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("--prompt", action="append", help="repeatable; default: read from standard input")
    command.add_argument("--tokens", type=positive, default=96, help="of the longest answer (default: %(default)s)")
    command.add_argument("--temperature", type=not_negative, default=0.0, help="0 takes the likeliest token (default)")


def run(options: argparse.Namespace) -> int:
    """Answer the prompts of the command line, or each line of standard input."""
    from training.generate.answers import answer
    from training.generate.loading import load_export
    from training.generate.prompts import prompt_ids
    from training.generate.sampling import Sampling

    named = named_model(options)
    model, tokenizer = load_export(named.folder)
    sampling = Sampling(tokens=options.tokens, temperature=options.temperature)
    for prompt in options.prompt or (line.rstrip("\n") for line in sys.stdin):
        ids = prompt_ids(tokenizer, prompt, as_chat=named.as_chat is not False)
        if not ids:
            raise ConfigError("--prompt: empty; give the text that the model is to continue")
        reply = answer(model, tokenizer, ids, sampling)
        say(f"> {prompt}\n{reply.text}" + ("" if reply.stopped else " [...]") + "\n")
    return EXIT_DONE
