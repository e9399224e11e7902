"""A tiny checkpoint, and the text that its compensations are fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.models import devices, texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.reference import Reference
from tests import tiny

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


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    """A model of 4 layers on PyTorch's `meta`, in the place of CUDA: shapes without values.

    It takes no tensor of the host, nor gives one to numpy; what is brought to the host is ones.
    """
    monkeypatch.setattr(devices, "refusal", lambda _: None)
    folder = tiny.checkpoint(tmp_path / "elsewhere", num_hidden_layers=4)
    reference = Reference(folder, device="meta")  # type: ignore[arg-type]
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: torch.ones(one.shape, dtype=one.dtype))
    return reference
