"""What a run is doing and what it did, for people."""
