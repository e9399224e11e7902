"""Logits piece by piece are those of one pass, with no layer run twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models import head
from pipeline.models.reference import Reference
from pipeline.types import SkipSet
from tests import tiny

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 96, (2, 12)))


@pytest.mark.parametrize("model_type", ["llama", "phi", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("skip", ["base", "block1"])
def test_pieces_are_the_whole(model_type: str, skip: str, tmp_path: Path) -> None:
    reference = Reference(tiny.checkpoint(tmp_path, model_type), SkipSet.parse(skip))
    columns = torch.tensor([1, 2, 5, 11])
    with torch.inference_mode():
        whole = reference.logits_at(IDS, columns)
        stream = head.last_stream(reference, IDS)
        parts = [head.logits_of(reference, IDS, stream, part) for part in torch.split(columns, 3)]
        again = reference.logits_at(IDS, columns)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(again, whole)


def test_a_piece_is_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(tiny.checkpoint(tmp_path))
    assert [len(part) for part in head.pieces(reference, 2, torch.arange(12))] == [12]
    monkeypatch.setattr(head, "LOGIT_NUMBERS", 2 * 96 * 5)
    assert [len(part) for part in head.pieces(reference, 2, torch.arange(12))] == [5, 5, 2]
    monkeypatch.setattr(head, "LOGIT_NUMBERS", 1)
    assert [len(part) for part in head.pieces(reference, 2, torch.arange(3))] == [1, 1, 1]


def test_no_layer_runs_for_a_piece(tmp_path: Path) -> None:
    """A replacement of a layer that was there before is there again afterwards."""
    reference = Reference(tiny.checkpoint(tmp_path))
    calls = []

    def counted(*_arguments: object, **_keywords: object) -> None:
        calls.append(1)

    with torch.inference_mode():
        stream = head.last_stream(reference, IDS)
        for layer in reference.layers:
            layer.forward = counted
        head.logits_of(reference, IDS, stream, torch.arange(3))
    assert not calls and all(vars(layer)["forward"] is counted for layer in reference.layers)
