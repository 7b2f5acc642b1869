"""Short causal convolution over packed rows in which sequences share a prefix: one op, its definition, a fast form.

A convolution of k taps reads the k - 1 inputs before a token. In a row these are the neighbours, except for the first
k - 1 tokens of a segment: a branch continues the end of its stem, and a stem begins with zeros.
"""

from __future__ import annotations

from wishbone.ops.prefix_convolution.reference import Convolve, prefix_convolution_reference
from wishbone.ops.prefix_convolution.whole_row import prefix_convolution

__all__ = ["Convolve", "prefix_convolution", "prefix_convolution_reference"]
