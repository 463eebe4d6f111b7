"""The verbs of the command that are more than a call."""
