"""Benchmarks: what Wishbone costs and gains, measured beside TRL and Unsloth. Tests are kept apart from them.

    commands/    what `python -m benchmarks NAME` runs, one module for each name
    harness/     how a measurement runs: processes, systems, workloads, clocks, the file of results
    rendering/   how results are shown: tables, pictures, docs/benchmarks.md
    results/     measurements with hardware, versions, commit and command

Imports go one way: commands use rendering, and both use the harness.
"""
