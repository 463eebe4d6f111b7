"""Repair documents, reject poor ones, replace private data, and find near duplicates."""
