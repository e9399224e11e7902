"""A GGUF's own blocks stay as they are where ONNX can say them; everything else is rounded."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf as library
import numpy as np
import pytest

from pipeline import store
from pipeline.models import checkpoint
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.gguf import header
from pipeline.models.quantisation import blocks, files, gguf_rounding
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.safetensors_index import load
from pipeline.store import records
from pipeline.store.records import KeptBlocks, QuantisedRecord
from tests import tiny_gguf
from tests.tiny_gguf import Kind, Tiny

INT4, INT8 = Quantisation(4, 32), Quantisation(8, 32)
MIXED = {"attn_q": Kind.Q4_0, "attn_k": Kind.Q8_0, "attn_v": Kind.Q4_1, "ffn_gate": Kind.Q4_0,
         "ffn_down": Kind.Q5_0, "token_embd": Kind.Q8_0}  # fmt: skip
"""Everything else is float32."""
ALL = {"attn_": Kind.Q4_0, "ffn_gate": Kind.Q4_0, "ffn_up": Kind.Q4_0, "ffn_down": Kind.Q4_0,
       "token_embd": Kind.Q8_0}  # fmt: skip


def opened(root: Path, kinds: dict[str, Kind]) -> Checkpoint:
    """What a small GGUF with a tied head is converted to."""
    source = tiny_gguf.source(
        root / "s", intermediate_size=128, tie_word_embeddings=True, num_key_value_heads=2
    )
    norms = {"_norm": Kind.F32}
    tiny_gguf.write(source, root / "m.gguf", Tiny(kinds={**norms, **kinds}))
    return checkpoint.resolve("m.gguf")


def kept(path: Path) -> KeptBlocks | None:
    return records.read(QuantisedRecord, store.sidecar_path(path)).kept


def test_no_weight_of_a_q4_0_file_is_rounded_again(workdir: Path) -> None:
    """Bit for bit llama.cpp's own numbers, but for the order of rows of q and k."""
    source = opened(workdir, ALL)
    path = files.ensure(source, INT4)
    assert kept(path) == KeptBlocks(file="m.gguf", weights=15, of=15)
    found = dict(files.dequantised(path))
    for tensor in header.read(Path("m.gguf")).tensors:
        if "norm" in tensor.name:
            continue
        plain = library.dequantize(tensor.stored(), tensor.kind)
        *layer, place = tensor.name.removesuffix(".weight").removeprefix("blk.").split(".")
        own = next((own for own, theirs in tiny_gguf.PLACES.items() if theirs == place), None)
        name = f"model.layers.{layer[0]}.{own}" if layer else "lm_head"
        weight = found[f"{name}.weight"].T
        if place in ("attn_q", "attn_k"):
            weight = tiny_gguf.permuted(
                weight, source.config["num_attention_heads" if place == "attn_q" else "num_key_value_heads"]
            )
        assert np.array_equal(weight, plain)


@pytest.mark.parametrize(
    ("form", "places", "count"),
    [(INT4, ("q", "gate"), 5), (INT8, ("q", "gate", "k"), 7)],
)
def test_of_a_mixed_file_those_that_fit(
    form: Quantisation, places: tuple[str, ...], count: int, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are rounded; 4 bits are said exactly in 8, and 8 never in 4. The head has 8 in both."""
    source = opened(workdir, MIXED)
    with caplog.at_level(logging.INFO):
        path = files.ensure(source, form)
    assert f"{count} of 15 weights keep the blocks of m.gguf; the others are rounded" in caplog.text
    assert kept(path) == KeptBlocks(file="m.gguf", weights=count, of=15)
    plain = load(source.folder / "model.safetensors", "np")
    plain["lm_head.weight"] = plain["model.embed_tokens.weight"]
    for name, weight in files.dequantised(path):
        stays = name == "lm_head.weight" or any(f".{place}_proj." in name for place in places)
        wanted = weight.T.astype(np.float16) if stays else None
        if wanted is not None:
            assert np.array_equal(wanted, plain[name])  # the conversion rounds to float16
        else:
            bits = form.bits
            rounded = blocks.rounded(np.ascontiguousarray(plain[name].T, np.float32), bits, 32)
            assert np.array_equal(weight, blocks.dequantised(rounded))
    if form is INT8:  # TensorRT refuses negative scales of 8 bits
        scales = [t for n, t in load(path, "np").items() if n.endswith(".scales")]
        assert all((one > 0).all() for one in scales)


def test_longer_blocks_are_rounded_and_the_shorter_named(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(workdir, ALL)
    with caplog.at_level(logging.INFO):
        path = files.ensure(source, Quantisation(4))
    assert "m.gguf has blocks of 32, which --block-size 32 keeps" in caplog.text
    assert kept(path) is None


@pytest.mark.parametrize(
    ("kinds", "int4", "int8"), [(ALL, 32, 32), (MIXED, 64, 64), ({"_": Kind.Q8_0}, 64, 32)]
)
def test_the_block_size_where_nobody_names_one(
    kinds: dict[str, Kind], int4: int, int8: int, workdir: Path
) -> None:
    """A GGUF's own where most weights stay so: 5 and 7 of the mixed file's 15 do."""
    source = opened(workdir, kinds)
    sizes = [gguf_rounding.usual_block_size(source, Quantisation(bits)) for bits in (4, 8)]
    assert sizes == [int4, int8]
    Path("m.gguf").unlink()
    assert gguf_rounding.usual_block_size(source, Quantisation(8)) == 64


def test_a_gguf_that_is_gone_or_a_checkpoint_that_was_changed(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.numpy import save_file

    source = opened(workdir, ALL)
    weights = source.folder / "model.safetensors"
    tensors = load(weights, "np")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name] * np.float16(1.5)}, weights, {"format": "pt"})
    path = files.ensure(checkpoint.open_checkpoint(source.folder), INT4)
    assert kept(path) == KeptBlocks(file="m.gguf", weights=14, of=15)
    Path("m.gguf").unlink()
    path.unlink()
    with caplog.at_level(logging.WARNING):
        assert kept(files.ensure(checkpoint.open_checkpoint(source.folder), INT4)) is None
    assert "m.gguf, which this model came from, is gone: all weights are rounded, although" in caplog.text
