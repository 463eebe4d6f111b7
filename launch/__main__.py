"""The `shardline` command: `shardline VERB RUN.yaml`, the same as `python -m launch VERB RUN.yaml`."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from cluster.environment import World, read_world
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, DamagedRowsError, ShardlineError, exit_code_of
from cluster.journal import set_up_logging
from cluster.launching.stop_request import ignore_signals
from cluster.versions import as_text, versions
from launch.wording import with_run_named

log = logging.getLogger(__name__)

VERBS = {
    "init": "write a commented YAML for your kind of data",
    "check": "check what can be known before a run: configuration, data, plan, disk",
    "prepare": "turn the corpus into shards",
    "verify": "check every byte of prepared data against its manifest",
    "train": "start or resume a run, on all GPUs of this machine or on CPU ranks",
    "verify-resume": "prove that an interrupted run has the same losses as an uninterrupted one",
    "evaluate": "score the tuned model beside its base on held-out data",
    "checkpoint": "list, check, show, keep and import checkpoints",
    "export": "write the newest checkpoint as a Hugging Face folder, and verify it",
    "generate": "answer prompts with the exported model",
    "report": "write one HTML page about the run",
    "inspect": "show which documents were in a step",
    "status": "show the state of a run",
}


CHECKPOINT_ACTIONS = {
    "list": "list the run's checkpoints",
    "verify": "check every byte of one checkpoint, or of all",
    "show": "show what a checkpoint holds, and which run it belongs to",
    "keep": "mark a checkpoint as kept: training never removes it",
    "unkeep": "remove the mark",
    "convert": "import a ZeRO-3 checkpoint that DeepSpeed wrote, for the run to resume from",
}


class VersionAction(argparse.Action):
    """Prints the versions and ends, as argparse's own does, but asks git only if it is asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(as_text(versions()))  # noqa: T201
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Return the parser: the first argument of every verb but `init` is a run's YAML or its folder."""
    top = argparse.ArgumentParser(prog="shardline", description=__doc__)
    top.add_argument(
        "--version", action=VersionAction, nargs=0, help="print the versions of this program and its libraries"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    found = {name: verbs.add_parser(name, help=text, description=text) for name, text in VERBS.items()}
    found["init"].add_argument(
        "kind",
        nargs="?",
        choices=("text", "pairs", "conversations"),
        help="the kind of your data; default: found by reading some of it",
    )
    found["init"].add_argument("--data", default="data", help="your file, folder or glob (default: %(default)s)")
    found["init"].add_argument("--model", help="a Hugging Face folder or Hub id to fine-tune; default: a new small one")
    found["init"].add_argument("--output", type=Path, default=Path("run.yaml"), help="default: %(default)s")
    for name in VERBS.keys() - {"init", "checkpoint"}:
        add_run(found[name])
    add_checkpoint_actions(found["checkpoint"])
    found["prepare"].add_argument(
        "--preview", type=positive, metavar="N", help="show N rows and which tokens are trained; write nothing"
    )
    found["train"].add_argument(
        "--ranks", type=positive, help="processes on this machine (default: one a GPU, or train.cpu_ranks)"
    )
    found["train"].add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="RUN",
        help="start a new run from another run's exported weights, on its shards",
    )
    found["train"].add_argument(
        "--restart", action="store_true", help="restart failed ranks as long as they reach new steps"
    )
    found["train"].add_argument(
        "--launching",
        action="store_true",
        help="for scripts that start the ranks: only record the launch, or refuse it if the last ones made no new step;"
        " prints the path of the file that stops the run once it exists",
    )
    found["verify-resume"].add_argument("--steps", type=positive, default=8, help="default: %(default)s")
    found["verify-resume"].add_argument("--ranks", type=positive, help="as in `shardline train`")
    found["verify-resume"].add_argument(
        "--other-ranks", type=positive, help="ranks of the resharded second half (default: 1; 2 if --ranks is 1)"
    )
    found["verify"].description = "RUN may also be the data's own folder: the one with manifest.json in it."
    found["generate"].add_argument("--prompt", action="append", help="repeatable; default: read from standard input")
    found["generate"].add_argument(
        "--tokens", type=positive, default=96, help="of the longest answer (default: %(default)s)"
    )
    found["generate"].add_argument(
        "--temperature", type=temperature, default=0.0, help="0 takes the likeliest token (default)"
    )
    found["inspect"].add_argument("--step", type=positive, required=True, help="the step, from 1")
    found["inspect"].add_argument(
        "--replay", action="store_true", help="repeat the step and compare its loss; changes nothing"
    )
    found["inspect"].add_argument("--originals", action="store_true", help="show documents as they are in their files")
    found["inspect"].add_argument(
        "--characters", type=positive, default=200, help="characters shown of each document (default: %(default)s)"
    )
    return top


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the arguments that name a run."""
    command.add_argument("run", type=Path, help="the run's YAML file, or its folder")
    command.add_argument(
        "-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key of the YAML"
    )


def add_checkpoint_actions(command: argparse.ArgumentParser) -> None:
    """Add the actions of `shardline checkpoint`."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    found = {name: actions.add_parser(name, help=text, description=text) for name, text in CHECKPOINT_ACTIONS.items()}
    for action in found.values():
        add_run(action)
    found["verify"].add_argument(
        "step", type=step_or("all"), nargs="?", default="all", help="a step, or 'all' (default)"
    )
    found["show"].add_argument(
        "step", type=step_or("newest"), nargs="?", default="newest", help="a step, or 'newest' (default)"
    )
    for name in ("keep", "unkeep"):
        found[name].add_argument("step", type=positive, help="the step of the checkpoint")
    found["convert"].add_argument(
        "--from-deepspeed",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the folder of DeepSpeed's `latest` and tags",
    )
    found["convert"].add_argument("--tag", help="the tag, such as global_step500; default: what `latest` says")


def positive(text: str) -> int:
    """Parse a count; argparse puts the option before the error."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def temperature(text: str) -> float:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code. An expected failure is one line on standard error and exit code 2."""
    options = parser().parse_args(arguments)
    set_up_logging()
    world: World | None = None
    try:
        if options.verb == "train" or (options.verb == "inspect" and options.replay):
            world = read_world()
        code = run_verb(options, world)
        sys.stdout.flush()  # here a closed pipe and a full disk can still be told apart
        return code
    except BrokenPipeError:  # the reader of our output has closed it: `shardline inspect ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (at exit, the rest of the buffer is written to nowhere)
        return EXIT_DONE
    except (ShardlineError, OSError, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        if code == EXIT_FAILED:
            raise
        if world is None or world.is_first or isinstance(error, DamagedRowsError):
            log.error("%s", with_run_named(message_of(error), options))
        return code
    finally:
        if world is not None:
            ignore_signals()


def run_verb(options: argparse.Namespace, world: World | None) -> int:
    """Run one verb, as a rank if a launcher made this process one."""
    if world is not None:
        set_up_logging(world)
        ignore_signals()
    commands = importlib.import_module("launch.commands")
    command: Callable[[argparse.Namespace], int] = getattr(commands, options.verb.replace("-", "_"))
    return command(options)


def message_of(error: BaseException) -> str:
    """Return the message for an error that ends a command."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; check the path, its permissions and its disk, then run the command again"
    return str(error)


def entry() -> NoReturn:
    open_closed_streams()
    code = main()
    if code == EXIT_INTERRUPTED:  # a normal exit would wait for threads that wait for a server or a disk
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def open_closed_streams() -> None:
    """Open those of standard input, output and error that were closed, as in `shardline status RUN >&-`.

    Else the next file to be opened would get their number, and what is printed would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    entry()
