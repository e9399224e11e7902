from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib import calibrate
from pipeline.models import checkpoint, texts
from tests import tiny

LAYERS = 5


@pytest.fixture
def calibrated(workdir: Path) -> str:
    """The name of a tiny model of five layers with similarity statistics."""
    source = tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=LAYERS)
    tiny.tokenizer(source)
    folder = checkpoint.resolve("models/tiny").folder
    calibrate.calibrate(folder, texts.OWN, calibrate.CalibrationSettings(3, 16, 2))
    return "tiny"
