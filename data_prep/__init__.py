"""Corpus to shards: start at prepare.py. Along its way: fetch, read, rows, clean, encode, select, pack, shards."""
