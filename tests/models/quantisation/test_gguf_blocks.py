"""A GGUF's own blocks: bit for bit what llama.cpp's package makes of the file."""

import gguf as library
import numpy as np
import pytest

from pipeline.models.config import read_config
from pipeline.models.gguf import header
from pipeline.models.gguf.convert import convert
from pipeline.models.quantisation import blocks, gguf_blocks
from pipeline.models.safetensors_index import load
from pipeline.types import UserError
from tests import tiny_gguf
from tests.tiny_gguf import Kind, Tiny

KINDS = {
    "attn_q": Kind.Q4_0, "attn_k": Kind.Q8_0, "attn_v": Kind.Q4_1, "attn_output": Kind.Q4_0,
    "ffn_gate": Kind.Q4_0, "ffn_down": Kind.Q5_0, "token_embd": Kind.Q8_0,
}  # fmt: skip
"""Everything else is float32."""


def opened(folder, model_type="llama", **changes):
    """(tensors of a GGUF by name, config and weights of what it is converted to)."""
    source = tiny_gguf.source(folder / "s", model_type, **changes)
    file = tiny_gguf.write(source, folder / "m.gguf", Tiny(kinds=KINDS))
    convert(file, folder / "c")
    stored = {tensor.name: tensor for tensor in header.read(file).tensors}
    return stored, read_config(folder / "c"), load(folder / "c" / "model.safetensors", "np")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3"])
def test_blocks_are_those_of_the_file_in_the_checkpoints_order(model_type, tmp_path):
    changes = {"num_key_value_heads": 2} if model_type != "phi3" else {}
    stored, config, converted = opened(tmp_path, model_type, **changes)
    weights = gguf_blocks.weights(stored, config)
    assert weights
    for name, weight in weights.items():
        own = weight.blocks()
        assert own.block_size == 32 and own.values.dtype == np.int8 and own.scales.dtype == np.float16
        low, high = blocks.limits(weight.bits)
        assert low <= own.values.min() and own.values.max() <= high
        plain = library.dequantize(weight.tensor.stored(), weight.tensor.kind)
        same = np.sort(blocks.dequantised(own).T.ravel()), np.sort(plain.ravel())
        assert np.array_equal(*same)
        # The conversion, which has the checkpoint's order, rounds these numbers to float16.
        assert np.array_equal(blocks.dequantised(own).T.astype(np.float16), converted[name])
    places = {"phi3": ["qkv", "o"]}.get(model_type, ["q", "k", "o", "gate"])
    assert set(weights) == {
        name for name in converted for place in places if name.endswith(f".{place}_proj.weight")
    }


def test_without_a_permutation_the_bits_are_those_of_the_file(tmp_path):
    stored, config, _ = opened(tmp_path)
    weight = gguf_blocks.weights(stored, config)["model.layers.1.self_attn.o_proj.weight"]
    assert weight.bits == 4 and (weight.blocks().scales < 0).any()
    plain = library.dequantize(weight.tensor.stored(), weight.tensor.kind)
    assert np.array_equal(blocks.dequantised(weight.blocks()).T, plain)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0])
def test_the_way_back_gives_the_bytes_of_the_file(kind, tmp_path):
    """ggml's own rounding of numbers, taken as blocks and written again; both signs of scales are there."""
    given = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    raw = library.quantize(given, kind)
    file = tmp_path / "raw"
    file.write_bytes(raw.tobytes())
    tensor = header.GgufTensor("blk.0.ffn_up.weight", file, kind, (5, 96), 0, raw.nbytes)
    own = gguf_blocks.GgufWeight(tensor).blocks()
    assert np.array_equal(gguf_blocks.written(own, gguf_blocks.BITS[kind]), raw)
    assert (own.scales < 0).any() == (kind == Kind.Q4_0)


def test_every_integer_has_its_place():
    """Of 4 and of 8 bits, by what llama.cpp's package reads: the lowest, which ggml seldom writes, too."""
    scales = np.array([[0.5, -2.0]], np.float16)
    for bits, kind in gguf_blocks.KINDS.items():
        low, high = blocks.limits(bits)
        values = np.stack([np.linspace(low, high, 32), np.linspace(high, low, 32)], 1).astype(np.int8)
        own = blocks.Blocks(values, scales)
        assert np.array_equal(
            library.dequantize(gguf_blocks.written(own, bits), kind), blocks.dequantised(own).T
        )


def test_a_tied_head_has_the_blocks_of_the_embedding(tmp_path):
    stored, config, converted = opened(tmp_path, tie_word_embeddings=True)
    weight = gguf_blocks.weights(stored, config)["lm_head.weight"]
    head = blocks.dequantised(weight.blocks()).T.astype(np.float16)
    assert weight.bits == 8
    assert np.array_equal(head, converted["model.embed_tokens.weight"])


def weight_of(scales, values, tmp_path):
    """A Q8_0 tensor [1, 64] in a file."""
    raw = b"".join(
        np.float16(s).tobytes() + np.int8(v).tobytes() for s, v in zip(scales, values, strict=True)
    )
    file = tmp_path / "raw"
    file.write_bytes(raw)
    tensor = header.GgufTensor("blk.0.ffn_up.weight", file, Kind.Q8_0, (1, 64), 0, len(raw))
    return gguf_blocks.GgufWeight(tensor)


def test_a_block_without_a_scale_is_zeros_and_can_be_divided_by(tmp_path):
    own = weight_of([0.0, 0.5], np.full((2, 32), 3), tmp_path).blocks()
    assert (own.scales > 0).all()
    assert np.array_equal(blocks.dequantised(own)[:, 0], np.repeat([0.0, 1.5], 32))


def test_a_scale_below_zero_of_8_bits_cannot_be_said(tmp_path):
    assert weight_of([-0.5, 0.5], np.ones((2, 32)), tmp_path).blocks() is None


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_refused(number, tmp_path):
    with pytest.raises(UserError, match=r"raw: blk\.0\.ffn_up\.weight holds NaN or infinity"):
        weight_of([number, 1], np.ones((2, 32)), tmp_path).blocks()
