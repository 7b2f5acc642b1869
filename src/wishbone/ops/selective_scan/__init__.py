"""Mamba's selective scan over packed rows in which sequences share a prefix: its definition and a chunked form.

Each channel keeps a vector h [state_dim], whose elements decay each at a rate of its own (Gu and Dao,
arXiv 2312.00752):

    h <- exp(dt A) h + dt B x;    y = C . h + D x

Both branches of a document start from the h at the end of its stem.
"""

from __future__ import annotations

from wishbone.ops.selective_scan.chunked import selective_scan
from wishbone.ops.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]
