"""A tiny checkpoint, and the text that its compensations are fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.reference import Reference

SAMPLES, LENGTH = 24, 16


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    """graphs/tiny: 4 layers, C = 64, with a tokenizer."""
    return open_checkpoint(folder)


@pytest.fixture
def reference(checkpoint: Checkpoint) -> Reference:
    """Its model."""
    return Reference(checkpoint.folder)


@pytest.fixture
def text(checkpoint: Checkpoint) -> MomentsText:
    """24 sequences of 16 tokens to fit on, and those that losses are reported on."""
    return MomentsText.cut(checkpoint, texts.OWN, SAMPLES, LENGTH)
