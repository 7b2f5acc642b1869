"""The configuration of a run: read from YAML, checked as a whole, written back."""

from __future__ import annotations

from wishbone.config.cautions import cautions
from wishbone.config.load import dump_config, load_config, parse_config
from wishbone.config.schema import RunConfig

__all__ = ["RunConfig", "cautions", "dump_config", "load_config", "parse_config"]
