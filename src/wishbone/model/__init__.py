"""Models: where they come from (load), what is trained on them (adapter), and how they are run."""
