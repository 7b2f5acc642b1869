"""How a measurement runs: processes, systems, workloads, clocks and the file of results."""
