"""What becomes of a run: evaluation, export, generated text."""
