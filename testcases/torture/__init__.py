"""Runs that are killed on purpose: `python -m testcases.torture resume`."""
