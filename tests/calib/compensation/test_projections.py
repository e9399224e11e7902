"""What can be folded into, and what is written for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.calib.compensation.projections import Projections
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.reference import Reference
from pipeline.types import UserError
from tests import tiny

T = 0.1 * np.random.default_rng(5).normal(size=(64, 64))
WRITERS = {
    "llama": ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
    "phi": ("model.layers.1.self_attn.dense", "model.layers.1.mlp.fc2"),
    "gpt_neox": ("gpt_neox.layers.1.attention.dense", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    "qwen": ("transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"),
    "granite": ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
}


def opened(folder: Path, model_type: str, dtype: str = "fp32") -> Projections:
    checkpoint = open_checkpoint(tiny.checkpoint(folder, model_type, dtype))
    return Projections(checkpoint, Reference(checkpoint.folder))


@pytest.mark.parametrize("model_type", WRITERS)
def test_the_changed_projection_adds_a_linear_map_of_what_it_wrote(tmp_path: Path, model_type: str) -> None:
    projections = opened(tmp_path, model_type)
    model = projections.reference.model
    for sublayer, name in zip(((1, "attn"), (1, "mlp")), WRITERS[model_type], strict=True):
        assert projections.refusal(sublayer) == "" and projections.weight(sublayer) == f"{name}.weight"
        tensors = projections.folded({sublayer: T})
        module = model.get_submodule(name)
        assert set(tensors) == {f"{name}.weight"} | ({f"{name}.bias"} if module.bias is not None else set())
        x = torch.randn(7, module.in_features)
        y = module(x)
        wanted = y + y @ torch.from_numpy(T).float()
        bias = tensors.get(f"{name}.bias")
        got = torch.nn.functional.linear(x, tensors[f"{name}.weight"], bias)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_checkpoints_dtype_is_kept(tmp_path: Path) -> None:
    projections = opened(tmp_path, "llama", "bf16")
    (tensor,) = projections.folded({(0, "mlp"): T}).values()
    assert tensor.dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"down_proj\.weight outgrows F16"):
        opened(tmp_path / "half", "llama", "fp16").folded({(0, "mlp"): T * 1e8})


def test_where_nothing_can_be_folded(tmp_path: Path) -> None:
    assert "writes to the stream before it" in opened(tmp_path / "a", "llama").refusal(None)
    for model_type in ("gemma2", "gemma3_text", "olmo2"):
        why = opened(tmp_path / model_type, model_type).refusal((1, "attn"))
        assert why == "a norm stands behind the projection of layer 1's attn"


def test_a_projection_on_a_device_is_folded_into_on_the_host(elsewhere: Reference) -> None:
    """Every weight of it reads as one."""
    projections = Projections(open_checkpoint(Path(elsewhere.model.name_or_path)), elsewhere)
    (tensor,) = projections.folded({(1, "mlp"): T}).values()
    wanted = torch.from_numpy(1 + T.sum(axis=0)).float()
    assert tensor.device.type == "cpu"
    torch.testing.assert_close(tensor, wanted[:, None].expand_as(tensor))
