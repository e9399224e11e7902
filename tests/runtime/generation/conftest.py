from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import tokenizer
from pipeline.runtime.generation.prompts import Prompts
from tests import tiny
from tests.prompting import changed


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tokenizer(tiny.checkpoint(tmp_path_factory.mktemp("words"), vocab_size=tiny.WORDS))


@pytest.fixture(scope="session")
def prompts(tokenizer_folder: Path) -> Prompts:
    """Prompts of a tiny tokenizer, without a model."""
    return changed(tokenizer.prompts(tokenizer_folder), ends=(2,))
