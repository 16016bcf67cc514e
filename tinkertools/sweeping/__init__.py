"""A sweep: a run for each combination of settings, and which of them is the best."""
