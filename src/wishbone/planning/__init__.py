"""What a machine has, what a run needs of it, and how long the run is; decided before anything is loaded."""
