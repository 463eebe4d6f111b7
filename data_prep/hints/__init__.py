"""What is told of data that are trained as they stand although they look like something else."""
