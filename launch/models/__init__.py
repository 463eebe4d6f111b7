"""The verbs after a run: what becomes of the trained weights."""
