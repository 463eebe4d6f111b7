"""Map a row's columns to turns, by the source's `fields` or by the detected kind of rows."""
