"""How good a trained model is, beside its base."""
