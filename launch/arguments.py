"""The verbs of the `shardline` command, and the types of their arguments.

Each verb is a file with `add_arguments(parser)` and `run(options)`, which returns the exit code. Only the file of the
verb that was typed is imported; it imports torch inside its functions, as `shardline status` must not take seconds.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from cluster.versions import as_text, versions

VERBS = {  # name: (its file, what it does)
    "init": ("launch.data.init", "write a commented YAML for your kind of data"),
    "check": ("launch.runs.check", "check what can be known before a run: configuration, data, plan, disk"),
    "prepare": ("launch.data.prepare", "turn the corpus into shards"),
    "verify": ("launch.data.verify", "check every byte of prepared data against its manifest"),
    "train": ("launch.runs.train", "start or resume a run, on all GPUs of this machine or on CPU ranks"),
    "verify-resume": (
        "launch.runs.verify_resume",
        "prove that an interrupted run has the same losses as an uninterrupted one",
    ),
    "tune": ("launch.runs.tune", "search hyper-parameters: each trial a normal run on the same shards"),
    "submit": ("launch.jobs.submit", "put the whole run into Slurm's queue, as a chain of jobs"),
    "status": (
        "launch.runs.status",
        "show the state of a run, once or until it ends; or list the runs in runs/",
    ),
    "track": ("launch.runs.track", "send a run's metrics to trackers: TensorBoard, W&B, MLflow, trackio, Comet"),
    "doctor": (
        "launch.runs.doctor",
        "examine the hosts of a run before it starts: GPUs, network, disk, limits, versions",
    ),
    "inspect": ("launch.runs.inspect", "show which documents were in a step"),
    "checkpoint": ("launch.runs.checkpoint", "list, check, show, keep and import checkpoints"),
    "export": ("launch.models.export", "write the newest checkpoint as a Hugging Face folder, and verify it"),
    "evaluate": ("launch.models.evaluate", "score the tuned model beside its base on held-out data"),
    "generate": ("launch.models.generate", "answer prompts with the exported model"),
    "chat": ("launch.models.chat", "talk with the exported model in the terminal"),
    "serve": ("launch.models.serve", "answer over HTTP: a chat page, OpenAI's API and metrics on one port"),
    "push": ("launch.models.push", "publish the export and its model card on the Hub, or a Space that chats with it"),
    "report": ("launch.runs.report", "write one HTML page about the run, or one that compares several"),
}


class VersionAction(argparse.Action):
    """Prints the versions and ends, as argparse's own does, but asks git only if it is asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(as_text(versions()))  # noqa: T201
        parser.exit()


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of these arguments: all verbs are in it, and what the verb that was typed takes."""
    top = argparse.ArgumentParser(prog="shardline", description="From a corpus to a fine-tuned language model.")
    top.add_argument(
        "--version", action=VersionAction, nargs=0, help="print the versions of this program and its libraries"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    typed = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, text) in VERBS.items():
        command = verbs.add_parser(name, help=text, description=text)
        if name == typed:
            importlib.import_module(module).add_arguments(command)
    return top


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the arguments that name a run."""
    command.add_argument("run", type=Path, help="the run's YAML file, or its folder")
    add_overrides(command)


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add the option that overrides keys of the run's configuration."""
    command.add_argument(
        "-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key of the YAML"
    )


def positive(text: str) -> int:
    """Parse a count; argparse puts the option before the error."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def step_range(text: str) -> tuple[int, int]:
    """Parse one step, or the first and the last one of several: 12 or 10-12."""
    first, _, last = text.partition("-")
    found = (positive(first), positive(last or first))
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the first step is after the last")
    return found


def not_negative(text: str) -> float:
    """Parse a finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def step_or(word: str) -> Callable[[str], int | str]:
    """Return a parser of a step number or this word."""

    def step(text: str) -> int | str:
        return text if text == word else positive(text)

    return step
