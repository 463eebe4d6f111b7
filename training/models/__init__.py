"""From a model's files to its weights and back to their names: transformers' own rules."""
