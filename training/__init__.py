"""Shards to weights: plan, order, batches, engine, checkpoint, loop, evaluation, export."""
