"""What a checkpoint is on disk, how it is written while training continues, and how it is restored."""
