"""Seconds from a command to the first new step of a run that was killed."""

from benchmarks.checkpoints import restart


def main() -> None:
    restart.main("resume")
