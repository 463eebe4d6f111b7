"""Saving, resuming, exporting: how long training waits, how fast a disk is used, how soon a start steps."""
