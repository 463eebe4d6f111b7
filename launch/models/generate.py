"""`shardline generate`: answer prompts with the exported model."""

from __future__ import annotations

import argparse
import sys

from cluster.errors import EXIT_DONE, ConfigError
from data_prep.shards import read_manifest
from launch.arguments import add_run, not_negative, positive
from launch.saved_config import load
from launch.wording import say


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--prompt", action="append", help="repeatable; default: read from standard input")
    command.add_argument("--tokens", type=positive, default=96, help="of the longest answer (default: %(default)s)")
    command.add_argument("--temperature", type=not_negative, default=0.0, help="0 takes the likeliest token (default)")


def run(options: argparse.Namespace) -> int:
    """Answer the prompts of the command line, or each line of standard input."""
    from training.generate.answers import answer
    from training.generate.loading import load_export
    from training.generate.prompts import prompt_ids
    from training.generate.sampling import Sampling

    run = load(options)
    model, tokenizer = load_export(run.paths.export)
    as_chat = read_manifest(run.shards).conversational
    sampling = Sampling(tokens=options.tokens, temperature=options.temperature)
    for prompt in options.prompt or (line.rstrip("\n") for line in sys.stdin):
        ids = prompt_ids(tokenizer, prompt, as_chat=as_chat)
        if not ids:
            raise ConfigError("--prompt: empty; give the text that the model is to continue")
        reply = answer(model, tokenizer, ids, sampling)
        say(f"> {prompt}\n{reply.text}" + ("" if reply.stopped else " [...]") + "\n")
    return EXIT_DONE
