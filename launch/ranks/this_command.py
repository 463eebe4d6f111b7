"""This command once more, as each of the ranks that it starts."""

from __future__ import annotations

import sys

from cluster.launching.fork_server import fork_server_for
from cluster.launching.local_launcher import run_ranks


def this_command() -> list[str]:
    return [sys.executable, "-m", "launch", *sys.argv[1:]]


def run_as_ranks(ranks: int) -> int:
    """Run this command as so many ranks of this machine, once; return one exit code for all."""
    with fork_server_for(this_command(), ranks, restart=False) as server:
        return run_ranks(this_command(), ranks, server=server)
