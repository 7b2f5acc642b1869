"""Data sets that are worked out once and kept in the cache of `datasets`, checked at every use.

A file there may be cut short by a full disk or a crash, and Arrow reads what is left of it without a word when the cut
falls between two batches. So each data set is a directory with a manifest (`wishbone.cache`): what differs from it is
worked out again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
from datasets import Dataset, concatenate_datasets

from wishbone.cache import Cache, files_of, kept_directory


def kept_dataset(name: str, write: Callable[[Path], None]) -> Dataset:
    """Return the data set of this name, after `write(empty_directory)` where there is no sound one.

    Args:
        name: tells everything that the content depends on, through a hash.
        write: makes one or several .arrow files; their names tell the order.

    Raises:
        RequestError: the cache cannot be written, or `write` refuses.
    """
    cache = Cache(Path(datasets.config.HF_DATASETS_CACHE) / "wishbone", "HF_DATASETS_CACHE")
    files = files_of(kept_directory(name, write, cache))  # `datasets` writes what it maps and filters beside them
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files])
