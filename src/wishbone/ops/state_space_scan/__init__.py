"""Mamba-2's state space scan over packed rows in which sequences share a prefix: its definition and a chunked form.

A head keeps a matrix H [state_dim, head_dim] that decays by one scalar a token (Dao and Gu, arXiv 2405.21060):

    H <- exp(dt A) H + B (dt x)^T;    y = H^T C + D x

Both branches of a document start from the H at the end of its stem.
"""

from __future__ import annotations

from wishbone.ops.state_space_scan.chunked import state_space_scan
from wishbone.ops.state_space_scan.reference import state_space_scan_reference

__all__ = ["state_space_scan", "state_space_scan_reference"]
