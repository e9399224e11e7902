"""The file of quantised weights: what it holds, when it is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.models import checkpoint
from pipeline.models.quantisation import blocks, files
from pipeline.models.quantisation.blocks import Blocks
from pipeline.models.quantisation.names import Quantisation
from pipeline.types import UserError
from tests import quantised, tiny


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


def test_it_is_written_once_a_form_and_anew_where_it_or_the_weights_changed(workdir: Path) -> None:
    source, form = quantised.model(workdir), Quantisation(4, 32)
    path = files.ensure(source, form)
    first, inode = path.read_bytes(), path.stat().st_ino
    assert files.ensure(source, form) == path and path.stat().st_ino == inode
    assert files.ensure(source, Quantisation(8, 32)) != path
    path.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    assert files.ensure(source, form).read_bytes() == first
    weights = source.folder / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    again = files.ensure(checkpoint.open_checkpoint(source.folder), form)
    assert again == path and path.read_bytes() != first


def test_the_checkpoint_stays_what_it_was(workdir: Path) -> None:
    """No shard of it is the file of quantised weights, by whatever name it goes."""
    source = quantised.model(workdir)
    before = source.identity, dict(source.tensors)
    files.ensure(source, Quantisation(4, 32))
    again = checkpoint.open_checkpoint(source.folder)
    assert (again.identity, again.tensors) == before
    assert again.weights.others == () and [file.name for file in again.files] == ["model.safetensors"]


def test_a_rounding_of_ones_own(workdir: Path) -> None:
    """As GPTQ's, which knows more of a weight than its numbers."""
    asked: dict[str, tuple[int, ...]] = {}

    def rounding(name: str, weight: np.ndarray, bits: int, block_size: int) -> Blocks:
        asked[name] = (*weight.shape, bits, block_size)
        made = blocks.rounded(weight, bits, block_size)
        return Blocks(np.zeros_like(made.values), made.scales)

    path = files.ensure(quantised.model(workdir), Quantisation(4, 32), rounding)
    assert asked["model.layers.0.mlp.down_proj.weight"] == (128, 64, 4, 32)
    assert asked["lm_head.weight"] == (64, 96, 8, 32) and len(asked) == 3 * 7 + 1
    assert not any(weight.any() for _, weight in files.dequantised(path))


def test_widths_that_blocks_do_not_divide(workdir: Path) -> None:
    source = quantised.model(workdir, intermediate_size=96)
    with pytest.raises(UserError, match=r"mlp\.down_proj\.weight has 96 inputs.*take --block-size 32$"):
        files.ensure(source, Quantisation(4, 64))
    odd = quantised.model(workdir, name="odd", intermediate_size=72)
    with pytest.raises(UserError, match=r"72 inputs.*take --precision fp16$"):
        files.ensure(odd, Quantisation(4, 32))
    assert not list(workdir.rglob("quantised.*"))


def test_a_weight_that_is_no_number_is_named_and_leaves_nothing(workdir: Path) -> None:
    source = quantised.model(workdir)
    weights = source.folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: .*NaN"):
        files.ensure(checkpoint.open_checkpoint(source.folder), Quantisation(4, 32))
    assert not list(workdir.rglob("*quantised.*"))


def test_files_that_are_damaged(workdir: Path) -> None:
    path = files.ensure(quantised.model(workdir), Quantisation(4, 32))
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    for change, says in (
        ({f"{name}.values": tensors[f"{name}.values"][:-8].clone()}, "do not fit together"),
        ({f"{name}.scales": tensors[f"{name}.scales"].float()}, "do not fit together"),
        ({f"{name}.scales": tensors[f"{name}.scales"][:3].clone()}, "do not fit together"),
        ({"other": torch.zeros(4)}, "something beside"),
    ):
        save_file({**tensors, **change}, workdir / "damaged.safetensors")
        with pytest.raises(UserError, match=says):
            files.stored(workdir / "damaged.safetensors")


def test_a_record_of_another_form_proves_nothing(workdir: Path) -> None:
    path = files.ensure(quantised.model(workdir), Quantisation(4, 32))
    record = store.sidecar_path(path)
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": 0}))
    inode = path.stat().st_ino
    assert files.ensure(checkpoint.open_checkpoint(path.parent), Quantisation(4, 32)).stat().st_ino != inode
    assert json.loads(record.read_text())["version"] == files.VERSION


def test_nothing_else_is_taken_for_one(workdir: Path) -> None:
    from pipeline.models import safetensors_index

    folder = tiny.checkpoint(workdir / "m")
    assert not files.is_quantised(safetensors_index.read_index([folder / "model.safetensors"]))
