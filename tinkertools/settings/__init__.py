"""Settings of a run as people give them, on the command line and in YAML: read with their places, and written.

What was given is in `given`, and how it is read in `reading`: a file's lines and nodes are in `nodes`, what each key is
in `keys`, single values in `values`, and what those must be in `expectations`. `writing` makes files that give exactly
a configuration, `schema` the JSON Schema of them.
"""
