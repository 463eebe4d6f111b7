"""Inspect a corpus, and see its rows, before it is prepared."""
