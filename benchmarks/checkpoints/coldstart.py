"""Seconds from a command to the first step of a new run."""

from benchmarks.checkpoints import restart


def main() -> None:
    restart.main("coldstart")
