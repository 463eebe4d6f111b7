"""Models by transformers' own rules: from files to weights and back, and which weights are trained."""
