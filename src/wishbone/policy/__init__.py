"""A model as the step runs it: pairs in, log-probabilities out."""
