"""Measurements against other libraries: tools/benchmark.py. One module a sub-command, each with a `run`."""
