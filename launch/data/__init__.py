"""The verbs before a run: a first YAML, and the data."""
