"""The engine: one optimizer step, how its rows are computed, and what is given up when memory runs out."""
