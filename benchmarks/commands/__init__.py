"""What `python -m benchmarks NAME` runs: each module has a `main`, and a `measure` where a child process measures."""
