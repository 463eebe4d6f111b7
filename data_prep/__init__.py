"""Corpus to shards: sources, documents, encoding, packing, shards and their manifest."""
