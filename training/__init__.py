"""Shards to weights; start at loop.py. Then models, step, zero, checkpoints; export, generate, evaluate, reporting."""
