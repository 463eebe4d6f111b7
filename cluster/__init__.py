"""Where am I, and may I? World, paths, files, journal, signals, Ray bring-up, errors."""
