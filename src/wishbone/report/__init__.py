"""What a run directory says: numbers, curves, what they mean, answers before and after. Reads files, trains nothing."""
