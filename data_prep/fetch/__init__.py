"""From sources to files on this machine, and from files to slices of work."""
