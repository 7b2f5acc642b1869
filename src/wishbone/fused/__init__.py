"""Layers of a transformers model through the ops, for as long as a step runs."""
