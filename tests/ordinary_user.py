"""A context in which root is asked for permission like anybody: without the capabilities that override it (Linux)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_Sets = ctypes.c_uint32 * 6
"""Effective, permitted and inheritable, twice: the lower 32 capabilities and the upper ones."""


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Context in which permissions count; of the thread that enters it."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root reads everything")
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(_VERSION, 0), _Sets()
    if libc.capget(header, before) != 0:
        pytest.skip("capabilities cannot be read here")
    without = _Sets(*before)
    without[0] &= ~_OVERRIDES
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
