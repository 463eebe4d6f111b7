"""From the bytes of a file to records, and from records to documents."""
