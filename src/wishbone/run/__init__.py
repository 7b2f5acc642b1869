"""A run from its configuration to its directory: what `wishbone train` does."""
