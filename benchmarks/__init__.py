"""Measurements beside peers, opt-in: `python -m benchmarks.overhead`, `python -m benchmarks.checkpoint`."""
