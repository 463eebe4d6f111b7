"""What every process needs around it: rank, paths, files, locks, journal, heartbeat, Ray, errors and exit codes."""
