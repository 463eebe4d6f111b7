"""Which documents are worth training on, what is repaired in them, and which resemble each other."""
