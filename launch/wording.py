"""How a run is named in the commands that messages tell a person to type, so that they work as they are printed."""

from __future__ import annotations

import argparse
import shlex
import sys

from cluster.paths import RunPaths

PLACEHOLDER = "RUN.yaml"  # what the packages below say, which do not know what was typed


def as_typed(options: argparse.Namespace) -> str:
    """Return the run as it was typed, overrides included."""
    overrides = [word for override in options.overrides for word in ("-o", override)]
    return shlex.join([str(options.run), *overrides])


def named(options: argparse.Namespace, paths: RunPaths) -> str:
    """Return the run for what comes next: as it was typed, or by its folder if more than its name was typed.

    For a run that holds its configuration.
    """
    is_whole_name = not options.overrides and getattr(options, "from_run", None) is None
    return shlex.quote(str(options.run if is_whole_name else paths.root))


def with_run_named(text: str, options: argparse.Namespace) -> str:
    """Return a message with what was typed in the place of the run."""
    return text.replace(PLACEHOLDER, as_typed(options)) if hasattr(options, "overrides") else text


def say(text: str) -> None:
    """Write a command's result to standard output."""
    sys.stdout.write(text + "\n")
