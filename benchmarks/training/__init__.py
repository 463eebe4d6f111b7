"""Steps of ranks: their time beside peers, their memory, their wait for data."""
