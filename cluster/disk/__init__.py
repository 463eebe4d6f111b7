"""Files that are whole or absent, and locks, on a disk that many hosts share."""
