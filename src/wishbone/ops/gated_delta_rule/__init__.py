"""The gated delta rule over packed rows in which sequences share a prefix: one op, its definition, a chunked form.

A head keeps a matrix S [key_dim, value_dim] (Yang et al., arXiv 2412.06464). At each token it forgets, then writes the
value under the key instead of what it would read there:

    S <- exp(g) S;    S <- S + k (beta (v - S^T k))^T;    o = S^T q

The decay is one number a head (gated delta rule) or one for each element of the key (Kimi's delta attention,
arXiv 2510.26692). Both branches of a document start from the S at the end of its stem.
"""

from __future__ import annotations

from wishbone.ops.gated_delta_rule.chunked import gated_delta_rule
from wishbone.ops.gated_delta_rule.reference import gated_delta_rule_reference

__all__ = ["gated_delta_rule", "gated_delta_rule_reference"]
