"""The targets by name."""

from __future__ import annotations

from soak.trials import Target


def target_named(name: str) -> Target:
    """A target; its module is imported only now, since some need torch."""
    return all_targets()[name]


def all_targets() -> dict[str, Target]:
    from soak import gguf_files, pair_files, run_configs, run_directories, store_files

    groups = (pair_files.TARGETS, gguf_files.TARGETS, run_configs.TARGETS, run_directories.TARGETS, store_files.TARGETS)
    return {target.name: target for group in groups for target in group}
