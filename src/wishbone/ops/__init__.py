"""Tensors in, tensors out: the few operations Wishbone exists for. Nothing here knows pairs or models."""
