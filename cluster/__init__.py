"""What a process needs around it: its rank, paths, files, locks, journal, signals, Ray, errors and exit codes."""
