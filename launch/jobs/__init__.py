"""`shardline submit`: the run as a chain of Slurm jobs."""
