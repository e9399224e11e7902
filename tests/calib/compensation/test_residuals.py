"""What a linear map leaves over is what numpy's least squares leave over on the activations themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.calib.compensation import forms, residuals
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.reference import Reference


def test_residuals_are_shares_of_the_stream(
    checkpoint: Checkpoint, reference: Reference, text: MomentsText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "RIDGES", (1e-9, 1e-9, 1e-9))
    got = residuals.residuals(checkpoint.folder, "mlp", texts.OWN, 24, 16)
    assert list(got) == ["mlp0", "mlp1", "mlp2", "mlp3"]
    rows = text.fitted[:21]
    with reference.entering() as entering, reference.adding() as adding, torch.inference_mode():
        h, f, x = [], [], []
        for row in rows:
            reference.logits_at(torch.from_numpy(row)[None], torch.arange(1))
            stream = entering[2] + adding[2, "attn"]
            x.append(stream[0, 1:].double().numpy())
            h.append(reference.layers[2].post_attention_layernorm(stream)[0].double().numpy())
            f.append(adding[2, "mlp"].reshape(1, 16, -1)[0].double().numpy())
    read = np.concatenate([np.concatenate(h), np.ones((21 * 16, 1))], axis=1)
    wanted = np.concatenate(f)
    solution, *_ = np.linalg.lstsq(read, wanted, rcond=None)
    left = np.square(wanted - read @ solution).sum() / np.square(np.concatenate(x)).sum()
    assert got["mlp2"] == pytest.approx(left, rel=1e-4)
    blocks = residuals.residuals(checkpoint.folder, "block", texts.OWN, 24, 16)
    attention = residuals.residuals(checkpoint.folder, "attn", texts.OWN, 24, 16)
    assert blocks["block2"] == pytest.approx(got["mlp2"] + attention["attn2"])
