"""The small tokenizers, built once."""

from __future__ import annotations

import pytest
from small_tokenizers import BUILDERS
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {name: build() for name, build in BUILDERS.items()}


@pytest.fixture
def chatml(tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return tokenizers["chatml"]
