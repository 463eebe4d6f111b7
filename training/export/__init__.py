"""A checkpoint as a Hugging Face folder."""
