"""What a checkpoint is on disk, and how it is written beside the steps and read again."""
