"""Training: the step, the trainer around it, and the run around the trainer."""
