"""Corpus to shards, and reading them back: ours beside what others do."""
