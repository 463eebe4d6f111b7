"""Jobs for Slurm's queue: what a run's YAML asks for, the `sbatch` commands, and what the queue says."""
