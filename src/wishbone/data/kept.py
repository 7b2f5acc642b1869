"""Data sets that are computed once, kept in the cache of `datasets`, and checked at every use.

A full disk or a crash may cut off a file there, and Arrow reads the rest without an error if the cut is between two
batches. So each data set is a directory with a manifest (`wishbone.cache`), and one that differs from its manifest is
computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
from datasets import Dataset, concatenate_datasets

from wishbone.cache import Cache, files_of, kept_directory


def kept_dataset(name: str, write: Callable[[Path], None]) -> Dataset:
    """Return the data set of this name; `write(empty_directory)` computes it if it is missing or damaged.

    Args:
        name: contains a hash of everything that the content depends on.
        write: writes one or several .arrow files, whose order is that of their names, and others beside them.

    Raises:
        RequestError: the cache cannot be written, or `write` refuses.
    """
    cache = Cache(Path(datasets.config.HF_DATASETS_CACHE) / "wishbone", "HF_DATASETS_CACHE")
    # `datasets` writes what it maps and filters beside the files
    files = [file for file in files_of(kept_directory(name, write, cache)) if file.suffix == ".arrow"]
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files])
