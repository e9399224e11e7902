"""The reference proved without itself: a sublayer whose last weight is zero gives what skipping it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.models.reference import Reference
from pipeline.models.sizes import rules_of
from pipeline.types import SkipSet, UserError
from tests import tiny

LAST = {
    "phi": ("self_attn.dense", "mlp.fc2"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "qwen": ("attn.c_proj", "mlp.c_proj"),
}
USUAL = ("self_attn.o_proj", "mlp.down_proj")


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three rows of 12 tokens: padded left, padded in the middle, whole."""
    ids = np.random.default_rng(0).integers(3, 96, (3, 12))
    mask = np.ones_like(ids)
    mask[0, :4] = mask[1, 5:8] = 0
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def zeroed(folder: Path, model_type: str, skip: SkipSet) -> torch.nn.Module:
    """The model as transformers runs it, every skipped sublayer with zeros in its output projection."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    attention, mlp = LAST.get(model_type, USUAL)
    for name, parameter in model.named_parameters():
        for layers, last in ((skip.attention, attention), (skip.mlp, mlp)):
            if any(f"{rules_of(model_type).layers}.{i}.{last}." in name for i in layers):
                parameter.data.zero_()
    return model


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("skip", ["base", "attn0", "mlp0", "attn1", "block1", "attn0-1", "block0-1"])
def test_skipping_is_what_zeroed_weights_give(model_type: str, skip: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, model_type)
    chosen = SkipSet.parse(skip)
    ids, mask, positions = batch()
    logits, cache = Reference(folder, chosen).forward(ids, mask, positions)
    with torch.no_grad():
        inputs = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions)}
        truth = zeroed(folder, model_type, chosen)(torch.tensor(ids), use_cache=False, **inputs)
    np.testing.assert_allclose(
        logits[mask == 1], truth.logits.numpy()[mask == 1], rtol=0, atol=1e-6 * np.abs(logits).max()
    )
    assert sorted(cache) == [i for i in range(2) if i not in chosen.attention]
    assert all(
        part.shape[2] == 12 for pair in cache.values() for part in pair
    )  # a sliding window crops no key here
    if chosen:
        whole, _ = Reference(folder).forward(ids, mask, positions)
        assert np.abs(whole - logits)[mask == 1].max() > 1e-2  # the skipped sublayer did something


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize("columns", [[], [0, 3, 11], [7, 8]])
def test_wanted_columns_are_those_of_all(columns: list[int], gap: int, tmp_path: Path) -> None:
    """The head is asked for these positions alone; keys and values are the same."""
    reference = Reference(tiny.checkpoint(tmp_path, "gemma3_text"))
    ids, positions = np.random.default_rng(0).integers(3, 96, (2, 12)), np.arange(12)[None].repeat(2, 0)
    mask = np.ones((2, 12 + gap), np.int64)
    mask[:, 8 : 8 + gap] = 0
    whole, cache = reference.forward(ids, mask, positions, 8)
    widths = []
    hook = reference.model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    some, same = reference.forward(ids, mask, positions, 8, columns)
    hook.remove()
    np.testing.assert_allclose(some, whole[:, columns], rtol=1e-5, atol=1e-6)
    assert sum(widths) == len(columns)
    assert all((a == b).all() for i in cache for a, b in zip(cache[i], same[i], strict=True))


@pytest.mark.parametrize("model_type", ["llama", "phi", "olmo2", "granite", "smollm3"])
def test_residuals_are_the_stream(model_type: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, model_type)
    reference = Reference(folder, SkipSet(attention=(1,)))
    ids, mask, positions = batch()
    streams, branches, entering = reference.trace(ids, mask, positions)
    assert list(streams) == [(0, "attn"), (0, "mlp"), (1, "mlp")]
    stream = entering
    for (
        part,
        after,
    ) in streams.items():  # each sublayer's stream is the one before it plus what the sublayer gives
        stream = stream + branches[part]
        np.testing.assert_allclose(after, stream, rtol=0, atol=1e-5)
    norm = reference.model.get_submodule(rules_of(model_type).final_norm)
    with torch.no_grad():
        head = reference.model.lm_head(norm(torch.tensor(streams[(1, "mlp")]))).numpy()
    head /= getattr(reference.model.config, "logits_scaling", 1)
    np.testing.assert_allclose(head, reference.forward(ids, mask, positions)[0], rtol=0, atol=1e-5)
    assert {part: after.shape for part, after in streams.items()} == dict.fromkeys(streams, (3, 12, 64))


def test_residuals_of_other_builders(tmp_path: Path) -> None:
    """GPT-NeoX and OPT name their sublayers otherwise; OPT's MLP is two linears of the layer itself."""
    from transformers import AutoConfig

    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    }
    for model_type, more in (
        ("gpt_neox", {"intermediate_size": 48}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ):
        folder = tmp_path / model_type
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **common, **more)).save_pretrained(
            folder
        )
        streams, branches, stream = Reference(folder, SkipSet((0,), (1,))).trace(*batch())
        assert list(streams) == [(0, "mlp"), (1, "attn")]
        for part, after in streams.items():
            stream = stream + branches[part]
            np.testing.assert_allclose(after, stream, rtol=0, atol=1e-5)


def test_generate_is_greedy_also_without_the_attention_of_layer_0(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama", eos_token_id=None)
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 3.0, "repetition_penalty": 9.0}'
    )
    for skip in (SkipSet(), SkipSet((0,)), SkipSet((0, 1), (0, 1))):
        reference = Reference(folder, skip)
        ids = [5, 17, 40]
        for _ in range(6):
            row = np.array([ids])
            ids.append(
                int(reference.forward(row, np.ones_like(row), np.arange(len(ids))[None])[0][0, -1].argmax())
            )
        assert reference.generate([5, 17, 40], 6) == ids[3:]


def test_fp16_reference_runs_in_fp16(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    full, _ = Reference(folder).forward(*batch())
    half, cache = Reference(folder, dtype="fp16").forward(*batch())
    mask = batch()[1]
    assert half.dtype == np.float16 and cache[0][0].dtype == np.float16
    assert 0 < np.abs(half - full)[mask == 1].max() < 1e-2 * np.abs(full).max()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        Reference(tmp_path)
    with pytest.raises(UserError, match="layer 7 does not exist"):
        Reference(tiny.checkpoint(tmp_path / "tiny"), SkipSet((7,)))
