"""The report of a run: metrics, curves, a diagnosis, answers before and after. It reads files and trains nothing."""
