"""Whether a run can learn anything, before it starts."""
