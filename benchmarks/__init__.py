"""Benchmarks: measurements, kept apart from tests. Results with hardware, versions and command lie in `results/`."""
