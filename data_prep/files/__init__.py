"""What lies on a disk: formats, compression, packed files, folders, and how much of each is read at once."""
