"""What is written of quantised weights, read by the safetensors library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.models import checkpoint
from pipeline.models.quantisation import files
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.quantisation.rounding import Nearest
from pipeline.types import UserError
from tests import quantised


@pytest.mark.parametrize(("bits", "dtype"), [(4, "fp32"), (4, "bf16"), (8, "fp16")])
def test_the_file_holds_every_linear_weight(bits: int, dtype: str, workdir: Path) -> None:
    """Read by the safetensors library, and unpacked by hand."""
    source = quantised.model(workdir, dtype=dtype)
    path = files.ensure(source, Quantisation(bits, 32))
    weights = {n: t for n, t in load_file(source.folder / "model.safetensors").items() if t.ndim == 2}
    del weights["model.embed_tokens.weight"]
    tensors = load_file(path)
    assert tensors.keys() == {f"{name}.{part}" for name in weights for part in ("values", "scales")}
    assert (
        all(name.startswith(("model.layers.", "lm_head")) for name in weights) and "lm_head.weight" in weights
    )
    given = dict(files.dequantised(path))
    for name, weight in weights.items():
        scales = tensors[f"{name}.scales"].float().repeat_interleave(32, 0)
        values = tensors[f"{name}.values"]
        if bits == 4 and name != "lm_head.weight":
            nibbles = torch.stack([values & 15, values >> 4], 1).reshape(scales.shape).to(torch.int16)
            values = torch.where(nibbles > 7, nibbles - 16, nibbles)
        by_hand = values.float() * scales
        assert np.array_equal(given[name], by_hand.numpy())
        steps = (by_hand.T - weight.float()).abs() / scales.T
        assert (
            steps.median() < 0.5
            and torch.corrcoef(torch.stack([by_hand.T.flatten(), weight.float().flatten()]))[0, 1] > 0.99
        )


def test_the_head_has_eight_bits_and_a_tied_one_is_a_copy(workdir: Path) -> None:
    source = quantised.model(workdir, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(source.folder / "model.safetensors")
    stored = files.stored(files.ensure(source, Quantisation(4)))
    assert stored["lm_head.weight"].bits == 8 and stored["lm_head.weight"].shape == (64, 96)
    assert {one.bits for name, one in stored.items() if name != "lm_head.weight"} == {4}
    assert {one.block_size for one in stored.values()} == {64}


def test_the_metadata_say_what_it_is(workdir: Path) -> None:
    source = quantised.model(workdir)
    with safe_open(files.ensure(source, Quantisation(8, 32)), "np") as file:
        assert file.metadata() == {
            "format": "quantised", "weights": source.identity, "quantisation": "int8-b32", "bits": "8",
            "block_size": "32", "method": "rtn",
        }  # fmt: skip


def test_a_weight_that_is_no_number_is_named_and_leaves_nothing(workdir: Path) -> None:
    source = quantised.model(workdir)
    weights = source.folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: .*NaN"):
        files.ensure(checkpoint.open_checkpoint(source.folder), Quantisation(4, 32))
    assert not list(workdir.rglob("*quantised.*"))


@pytest.mark.parametrize(("model_type", "wide"), [("llama", 3), ("phi", 3), ("phi3", 0), ("gpt_neox", 0)])
def test_values_have_eight_bits_where_a_method_measures(model_type: str, wide: int, workdir: Path) -> None:
    """And where they have a matrix of their own."""
    source = quantised.model(workdir, model_type)
    for method, wanted in (("gptq", wide), ("rtn", 0)):
        stored = files.stored(files.ensure(source, Quantisation(4, 32, method), Nearest()))
        eight = [name for name, one in stored.items() if one.bits == 8]
        assert sum(".v_proj." in name for name in eight) == wanted and len(eight) == wanted + 1
