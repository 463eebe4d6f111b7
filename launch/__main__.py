"""The `shardline` command: `shardline VERB RUN.yaml`, the same as `python -m launch VERB RUN.yaml`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cluster.environment import fork_server_socket, read_world
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, DamagedRowsError, ShardlineError, exit_code_of
from cluster.journal.log import set_up_logging
from cluster.launching.stop_request import ignore_signals
from cluster.network.world import World
from launch.arguments import VERBS, parser
from launch.wording import with_run_named

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code. An expected failure is one line on standard error and exit code 2."""
    typed = sys.argv[1:] if arguments is None else arguments
    set_up_logging()
    try:
        options = parser(typed).parse_args(typed)
    except KeyboardInterrupt:  # importing the verb takes a while
        log.error("interrupted")
        return EXIT_INTERRUPTED
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
        if world is not None and options.verb == "train":
            ignore_signals()


def run_verb(options: argparse.Namespace, world: World | None) -> int:
    """Run one verb, as a rank if a launcher made this process one."""
    if world is not None:
        set_up_logging(world)
        if options.verb == "train":
            ignore_signals()
    module, _ = VERBS[options.verb]
    run: Callable[[argparse.Namespace], int] = importlib.import_module(module).run
    return run(options)


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
    server = fork_server_socket()
    if server is not None:
        from launch.fork_server import serve_forks

        serve_forks(server)  # returns in the ranks that are forked from this process
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
