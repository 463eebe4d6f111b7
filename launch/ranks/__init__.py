"""What starts ranks and tends them: the task of a Slurm job and of each of its hosts, and what ranks import and log."""
