"""Start the processes of a run on this machine, and stop them together."""
