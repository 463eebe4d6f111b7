"""Name the run in the commands that messages suggest, so that they work as they are printed."""

from __future__ import annotations

import argparse
import shlex
import sys

from cluster.paths import RunPaths

PLACEHOLDER = "RUN.yaml"  # the packages below write this, as they do not know what was typed


def as_typed(options: argparse.Namespace) -> str:
    """Return the run as it was typed, overrides included."""
    overrides = [word for override in options.overrides for word in ("-o", override)]
    return shlex.join([str(options.run), *overrides])


def named(options: argparse.Namespace, paths: RunPaths) -> str:
    """Return the run for the next command: as it was typed, or its folder if options changed the configuration.

    For a run whose folder holds its configuration.
    """
    is_whole_name = not options.overrides and getattr(options, "from_run", None) is None
    return shlex.quote(str(options.run if is_whole_name else paths.root))


def with_run_named(text: str, options: argparse.Namespace) -> str:
    """Return a message with the run as it was typed in place of the placeholder."""
    return text.replace(PLACEHOLDER, as_typed(options)) if hasattr(options, "overrides") else text


def say(text: str) -> None:
    """Write a command's result to standard output."""
    sys.stdout.write(text + "\n")
