"""Hyper-parameter search: Optuna chooses the values, and each trial is a normal run."""
