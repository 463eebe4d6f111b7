"""From documents to token ids and loss mask."""
