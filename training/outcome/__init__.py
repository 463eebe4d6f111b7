"""The results of a run: evaluation, export, generated text."""
