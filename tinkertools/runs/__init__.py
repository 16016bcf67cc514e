"""Run directories: the only code that knows the names of the files in them."""
