"""What the columns of a row mean: its text or its turns, by the source's `fields` or by the detected kind of rows."""
