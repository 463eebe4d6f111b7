"""Look at a corpus and its rows before it is prepared: for `check`, `init` and `prepare --preview`."""
