"""Which rank the others wait for, found by a process beside the ranks."""
