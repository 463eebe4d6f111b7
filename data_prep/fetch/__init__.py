"""From a source's address to files on this machine, and from files to slices of work."""
