"""The verbs of a run: check, train, and look at what it does."""
