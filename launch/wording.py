"""Name the run in the commands that messages suggest, so that they work as they are printed."""

from __future__ import annotations

import argparse
import re
import shlex
import sys

from cluster.paths import RunPaths

PLACEHOLDER = "RUN.yaml"  # the packages below write this, as they do not know what was typed
SUGGESTED = re.compile(rf"(?P<command>shardline (?P<verb>[\w-]+) )?{re.escape(PLACEHOLDER)}")
STAGES = {"evaluate", "export"}  # sections that only the verb of that name needs, and `submit`
NOT_FOR_DATA = {"train", "cluster", "trackers"}  # what `prepare` does not need either


def as_typed(options: argparse.Namespace, verb: str = "submit") -> str:
    """Return the run as it was typed, with those overrides that concern a verb; with all for `submit`."""
    unread = set() if verb == "submit" else STAGES - {verb}
    unread |= NOT_FOR_DATA if verb == "prepare" else set()
    kept = [override for override in options.overrides if section_of(override) not in unread]
    return shlex.join([str(options.run), *(word for override in kept for word in ("-o", override))])


def section_of(override: str) -> str:
    """Return the first key of an override: `train` of `train.steps=8`."""
    return override.partition("=")[0].partition(".")[0].strip()


def named(options: argparse.Namespace, paths: RunPaths) -> str:
    """Return the run for the next command: as it was typed, or its folder if options changed the configuration.

    For a run whose folder holds its configuration.
    """
    is_whole_name = not options.overrides and getattr(options, "from_run", None) is None
    return shlex.quote(str(options.run if is_whole_name else paths.root))


def with_run_named(text: str, options: argparse.Namespace) -> str:
    """Return a message with the run as it was typed in place of the placeholder; see as_typed."""
    if not hasattr(options, "overrides"):
        return text

    def run_in(match: re.Match[str]) -> str:
        command, verb = match["command"] or "", match["verb"]
        return command + (as_typed(options, verb) if verb else as_typed(options))

    return SUGGESTED.sub(run_in, text)


def say(text: str) -> None:
    """Write a command's result to standard output."""
    sys.stdout.write(text + "\n")
