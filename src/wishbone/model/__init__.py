"""Models: loading them, the precision of their weights, and adapters: making, saving and merging them."""
