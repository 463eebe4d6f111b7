"""Files on a disk: formats, compression, archives, folders, and limits on how much is read at once."""
