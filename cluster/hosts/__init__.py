"""A run on several hosts without Slurm: the same command is started on each, and the hosts meet."""
