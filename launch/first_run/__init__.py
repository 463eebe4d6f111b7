"""The first YAML of a run: look at the data and the model, choose, and say why."""
