"""The engine: one optimizer step, how much memory and time it may take, and what happens when memory runs out."""
