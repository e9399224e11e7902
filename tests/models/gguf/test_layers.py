"""GGUF files of pruned models (architecture `deci`): what is there comes back, the rest is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.evals.check import beside_llamacpp
from pipeline.models import checkpoint, drop_lists
from pipeline.models.config import read_config
from pipeline.models.gguf.convert import convert
from pipeline.models.gguf.layers import NOUGHTS
from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_left_out
from pipeline.store.records import LlamaCppRecord
from pipeline.types import SkipSet, UserError
from tests import tiny, tiny_deci, tiny_gguf
from tests.tiny_gguf import Tiny

LAYERS = 4
NAMES = ["base", "attn1", "attn0", "attn3", "mlp0", "mlp3", "block1-2", "block0", "block3", "attn1+mlp2",
         "attn1-2+mlp2-3", "attn0_3+mlp0_1", "mlp0-3", "block3+mlp0-2"]  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_scaling": dict(tiny.LLAMA3), "max_position_embeddings": 1024},
    "untied": {"tie_word_embeddings": False},
}


def source(folder: Path, **changes: Any) -> Path:
    """A whole checkpoint of Llama's form."""
    return tiny_gguf.source(folder, "llama", num_hidden_layers=LAYERS, **changes)


def written(folder: Path, how: Tiny) -> Path:
    """Its GGUF, beside it."""
    config = read_config(folder)
    if config["rope_scaling"]:
        how.tensors["rope_freqs.weight"] = tiny_gguf.rope_factors(dict(config))
    return tiny_gguf.write(folder, folder.parent / "m.gguf", how)


def with_keys(folder: Path, name: str, **keys: Any) -> Path:
    """The GGUF of a variant, some of its keys changed (`__` for a dot)."""
    how = tiny_deci.of(folder, SkipSet.parse(name))
    how.keys |= {key.replace("__", "."): value for key, value in keys.items()}
    return written(folder, how)


@pytest.mark.parametrize("changes", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_comes_back_under_its_own_index(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole, skip, target = source(tmp_path / "s", **changes), SkipSet.parse(name), tmp_path / "c"
    convert(written(whole, tiny_deci.of(whole, skip)), target)
    config, tensors = read_config(target), load_file(target / "model.safetensors")
    assert drop_lists.skip_set(config, target) == skip
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", LAYERS)
    for key in ("rope_scaling", "attention_bias", "mlp_bias", "head_dim"):
        assert config[key] == read_config(whole)[key], key
    has_mlp = len(skip.mlp) < LAYERS  # else their width is in none of the file's layers
    assert config["intermediate_size"] == (read_config(whole)["intermediate_size"] if has_mlp else NOUGHTS)
    expected = {
        tensor: numbers
        for tensor, numbers in load_file(whole / "model.safetensors").items()
        if not is_left_out(tensor, skip, rules_of("llama"))
    }
    assert set(tensors) == set(expected)
    for tensor, numbers in tensors.items():
        assert torch.equal(numbers.float(), expected[tensor]), tensor


def test_widths_of_nought_leave_a_block_out(tmp_path: Path) -> None:
    """Of a file that keeps the layer's number, as the published Nemotron models do."""
    whole, skip = source(tmp_path / "s"), SkipSet.parse("block1")
    how = tiny_deci.of(whole, skip)
    counts = {
        key: [0 if i == 1 else value[0] for i in range(LAYERS)]
        for key, value in how.keys.items()
        if isinstance(value, list) and key.startswith("deci.")
    }
    gone = {name: None for name in tiny_gguf.tensors(whole) if name.startswith("blk.1.")}
    plain = Tiny(arch="deci", keys={**counts, "deci.block_count": LAYERS}, tensors=gone)  # type: ignore[arg-type]
    convert(written(whole, plain), tmp_path / "c")
    config = read_config(tmp_path / "c")
    assert config["num_hidden_layers"] == LAYERS
    assert drop_lists.skip_set(config, tmp_path) == skip


def test_without_the_originals_numbers_the_files_count(tmp_path: Path) -> None:
    whole = source(tmp_path / "s")
    convert(
        written(whole, tiny_deci.of(whole, SkipSet.parse("block1+attn3"), originals=False)), tmp_path / "c"
    )
    config = read_config(tmp_path / "c")
    assert config["num_hidden_layers"] == LAYERS - 1
    assert drop_lists.skip_set(config, tmp_path) == SkipSet((2,))


@pytest.mark.parametrize("arch", ["llama", "deci"])
def test_counts_for_all_layers_are_a_whole_model(arch: str, tmp_path: Path) -> None:
    whole = source(tmp_path / "s")
    convert(written(whole, Tiny(arch=arch)), tmp_path / "c")
    assert not drop_lists.skip_set(read_config(tmp_path / "c"), tmp_path)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("attn1", {"deci__attention__head_count": [4, 0, 4]}, r"head_count has 3 numbers for 4 layers"),
    ("attn1", {"deci__feed_forward_length": [96] * 5}, r"feed_forward_length has 5 numbers for 4 layers"),
    ("attn1", {"deci__attention__head_count": [4, 0, -4, 4]}, r"head_count has -4, which is no size"),
    ("attn1", {"deci__attention__head_count": [4.0, 0.0, 4.0, 4.0]}, r"has 4\.0, which is no size"),
    ("attn1", {"deci__attention__head_count_kv": [2, 0, 2, 4]}, r"head_count_kv: layers differ"),
    ("base", {"deci__attention__head_count_kv": [2, 0, 2, 2]}, r"blk\.1 has a linear map in the place"),
    ("attn1", {"deci__attention__head_count_kv": [2] * 4}, r"is 0 in layer 1 and .* is 2: is its attention"),
    ("base", {"deci__attention__head_count": [4, 0, 4, 4], "deci__attention__head_count_kv": [2, 0, 2, 2]},
     r"holds the tensor blk\.1\.attn_\w+\.weight, .*: its keys say that layer 1 has no attention"),
    ("base", {"deci__feed_forward_length": [96, 0, 96, 96]}, r"which llama\.cpp leaves out with the MLP"),
    ("base", {"deci__feed_forward_length": [96, 64, 96, 96]}, r"layers differ, .* does something"),
    ("attn1", {"deci__attention__head_count": [4] * 4, "deci__attention__head_count_kv": [2] * 4},
     r"lacks the tensor blk\.1\.attn_norm\.weight"),
    ("mlp1", {"deci__feed_forward_length": [96, 16, 96, 96]}, r"blk\.1\.ffn_gate\.weight is \[32, 64\]"),
    ("attn1", {"deci__block_count": 5}, r"has 4 numbers for 5 layers"),
    ("attn1", {"deci__attention__head_count": [0] * 4, "deci__attention__head_count_kv": [0] * 4},
     r"no layer of it has attention"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "message"), BAD)
def test_what_contradicts_itself_is_refused(
    name: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = with_keys(source(tmp_path / "s"), name, **keys)
    with pytest.raises(UserError, match=message) as caught:
        convert(file, tmp_path / "c")
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()


def test_a_scalar_that_claims_many_layers_is_refused_at_once(tmp_path: Path) -> None:
    file = written(source(tmp_path / "s"), Tiny(arch="deci", keys={"deci.block_count": 2**31}))
    with pytest.raises(UserError, match=r"block_count is 2,147,483,648, and it has tensors of 4"):
        convert(file, tmp_path / "c")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("blk.1.ffn_down.bias", r"blk\.1 has biases or a map in the place of an MLP; .* was fitted to"),
        ("blk.1.ffn_down.weight", None),  # gate and up are noughts still
        ("blk.0.attn_output.weight", r"blk\.0 has a linear map in the place of attention; .* was fitted to"),
    ],
)
def test_what_stands_in_for_a_sublayer_is_not_read_back(
    tensor: str, message: str | None, tmp_path: Path
) -> None:
    refuse_not_nought(tensor, 0.5, message, tmp_path)


@pytest.mark.parametrize("part", ["ffn_down.weight", "ffn_norm.weight", "ffn_up.weight"])
def test_a_product_with_nought_may_be_no_number(part: str, tmp_path: Path) -> None:
    """0 · ∞ is NaN, in llama.cpp too."""
    refuse_not_nought(f"blk.1.{part}", np.inf, rf"blk\.1\.{part} holds NaN or infinity", tmp_path)


def refuse_not_nought(tensor: str, value: float, message: str | None, tmp_path: Path) -> None:
    """A variant of which one tensor that adds nothing has numbers."""
    whole = source(tmp_path / "s")
    how = tiny_deci.of(whole, SkipSet.parse("attn0+mlp1"))
    shape = how.tensors[tensor].shape if tensor in how.tensors else (64,)  # type: ignore[union-attr]
    how.tensors[tensor] = np.full(shape, value, np.float32)
    file = written(whole, how)
    if message is None:
        convert(file, tmp_path / "c")
        return
    with pytest.raises(UserError, match=message):
        convert(file, tmp_path / "c")


@pytest.mark.slow
@pytest.mark.parametrize("changes", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_the_same(name: str, changes: dict[str, Any], workdir: Path) -> None:
    whole = source(workdir / "s", **changes)
    file = written(whole, tiny_deci.of(whole, SkipSet.parse(name)))
    record = beside_llamacpp.compare(checkpoint.resolve(str(file)).folder)
    assert isinstance(record, LlamaCppRecord) and record.passed
    assert record.distance is not None and record.distance < 0.001


def test_no_scalar_is_repeated_as_often_as_a_file_claims(tmp_path: Path) -> None:
    """2³¹ times head_count would be 16 GB."""
    counts = {"deci.block_count": 2**31 - 1, "deci.feed_forward_length": [96, 96, 96, 0]}
    file = tiny_gguf.write(source(tmp_path / "s"), tmp_path / "m.gguf", Tiny(arch="deci", keys=counts))
    with pytest.raises(UserError, match=r"feed_forward_length has 4 numbers for 2147483647 layers"):
        convert(file, tmp_path / "c")
