"""Start the ranks of a run, or a Ray cluster, on this machine, and stop them together."""
