"""Layers of a transformers model through the ops, while a step runs."""
