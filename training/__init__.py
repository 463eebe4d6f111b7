"""Shards to weights; start at loop.py. Rooms: models, step, zero, checkpoints, outcome, reporting."""
