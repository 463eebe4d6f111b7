"""Several requests answered at the same time by one model in one thread."""
