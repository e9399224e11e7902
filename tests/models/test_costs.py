"""Costs against published sizes, transformers' own parameter counts, and known ceilings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.models import costs
from pipeline.models.compensation import NO_MAPS, MapSizes
from pipeline.models.costs import Workload
from pipeline.models.quantisation import files
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.quantisation.rounding import Nearest
from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_left_out
from pipeline.types import BASE, SkipSet, UserError
from tests import quantised, tiny

LLAMA_2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
LLAMA_2_70B = LLAMA_2_7B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8,
}  # fmt: skip


def last(kind: str, count: int, layers: int = 32) -> SkipSet:
    return SkipSet.of(kind, range(layers - count, layers))


def test_published_sizes() -> None:
    assert costs.parameters(LLAMA_2_7B) == 6_738_415_616
    assert costs.parameters(LLAMA_2_70B) == 68_976_648_192
    assert costs.cache_bytes(LLAMA_2_7B, BASE, "fp16") == 2 * 32 * 4096 * 2
    assert costs.cache_bytes(LLAMA_2_70B, last("attn", 40, 80), "fp16") == 40 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("skip", "decode", "length", "expected"),
    [
        (last("attn", 8), True, 0, 1.09),
        (last("attn", 11), True, 0, 1.13),
        (last("attn", 16), True, 0, 1.19),
        (last("mlp", 11), True, 0, 1.29),
        (last("block", 8), True, 0, 1.33),
        (last("block", 11), True, 0, 1.51),
        (last("attn", 11), False, 128, 1.13),
        (last("attn", 11), False, 2048, 1.15),  # 1.14 if only the causal half of the scores were computed
        (last("attn", 16), False, 128, 1.20),
    ],
)
def test_known_ceilings_of_llama_2_7b(skip: SkipSet, decode: bool, length: int, expected: float) -> None:
    """Computed by hand from the published sizes."""
    assert costs.ceiling(LLAMA_2_7B, skip, "fp16", Workload(length, decode)) == pytest.approx(
        expected, abs=0.01
    )


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_transformers(model_type: str, tied: bool) -> None:
    settings = {
        **tiny.COMMON,
        **tiny.DIALECTS[model_type],
        "tie_word_embeddings": tied and model_type != "phi",
    }
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config)
    assert costs.parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("gpt_neox", {"attention_bias": False}),
    ],
)
def test_biases_that_the_config_asks_for_are_counted(model_type: str, changes: dict[str, bool]) -> None:
    config = AutoConfig.for_model(model_type, **{**tiny.COMMON, **tiny.DIALECTS[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config)
    assert costs.parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


def test_flops_by_hand() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 10,
    }
    attention = 2 * 4 * 8 * 8 * 3 + 4 * 8 * 3 * 5  # projections of 3 tokens, scores of 3 queries and 5 keys
    mlp = 2 * 3 * 8 * 16 * 3
    assert costs.flops(config, BASE, new=3, past=2, wanted=1) == 2 * (attention + mlp) + 2 * 8 * 10
    assert costs.flops(config, SkipSet((1,), ()), new=3, past=2) == attention + 2 * mlp + 160


@pytest.mark.parametrize("model_type", ["gpt_neox", "opt"])
def test_foreign_architectures_are_counted_too(model_type: str) -> None:
    settings = {**tiny.COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64}
    del settings["num_key_value_heads"]  # these two have none
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config)
    assert costs.parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


def test_a_config_with_other_names_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="'gpt2' has no 'hidden_size'"):
        costs.parameters({"model_type": "gpt2", "n_embd": 768})


def test_maps_are_counted() -> None:
    """8 attentions of Llama 2 7B: each saves 4·4096² weights, and a matrix brings a quarter of it back."""
    skip, width = last("attn", 8), 4096
    linear = MapSizes(parameters=8 * (width * width + width), products=8 * width * width)
    assert costs.parameters(LLAMA_2_7B, skip, linear) == (
        costs.parameters(LLAMA_2_7B) - 8 * (4 * width * width + width) + 8 * (width * width + width)
    )
    assert costs.flops(LLAMA_2_7B, skip, 10, maps=linear) == (
        costs.flops(LLAMA_2_7B, skip, 10) + 2 * 10 * 8 * width * width
    )
    work = Workload(0, decode=True)
    none, some = (costs.ceiling(LLAMA_2_7B, skip, "fp16", work, maps) for maps in (NO_MAPS, linear))
    read = costs.parameters(LLAMA_2_7B) - 32000 * width  # all but the table of embeddings
    assert some == pytest.approx(read / (read - 8 * 3 * width * width))
    assert 1 < some < none


def test_a_batch_reads_the_weights_once_and_the_cache_of_every_row() -> None:
    skip = last("attn", 16)
    one = costs.streamed_bytes(LLAMA_2_7B, skip, "fp16", Workload(100, decode=True))
    cache = 100 * costs.cache_bytes(LLAMA_2_7B, skip, "fp16")
    eight = Workload(100, decode=True, batch=8)
    assert costs.streamed_bytes(LLAMA_2_7B, skip, "fp16", eight) == one + 7 * cache
    few, many = (
        costs.ceiling(LLAMA_2_7B, skip, "fp16", Workload(2048, decode=True, batch=batch)) for batch in (1, 64)
    )
    assert few < many < 2  # a larger cache moves the ceiling towards its own ratio


def test_the_byte_ceiling_of_a_prefill_is_that_of_its_weights_and_the_cache_it_writes() -> None:
    """Of a third of the weights that stream, and of the cache, in fp16."""
    work, mlp = Workload(100), 3 * 4096 * 11008 + 4096
    weights = 6_738_415_616 - 32_000 * 4096
    whole, part = (2 * numbers + 100 * 2 * 32 * 4096 * 2 for numbers in (weights, weights - 11 * mlp))
    assert costs.byte_ceiling(LLAMA_2_7B, last("mlp", 11), "fp16", work) == pytest.approx(whole / part)
    maps = MapSizes(1_000_000, 900_000)
    with_maps = costs.byte_ceiling(LLAMA_2_7B, last("mlp", 11), "fp16", work, maps)
    assert with_maps == pytest.approx(whole / (part + 2_000_000))
    decoding = Workload(100, decode=True)
    assert costs.ceiling(LLAMA_2_7B, last("mlp", 11), "fp16", decoding) == pytest.approx(whole / part)
    assert costs.ceiling(LLAMA_2_7B, last("attn", 11), "fp16", work) != pytest.approx(
        costs.byte_ceiling(LLAMA_2_7B, last("attn", 11), "fp16", work), rel=1e-3
    )


@pytest.mark.parametrize(
    ("model_type", "tied", "bits", "method"),
    [
        *itertools.product(("llama",), (False, True), (4, 8), ("rtn",)),
        ("phi", False, 4, "rtn"),
        ("llama", True, 4, "gptq"),
        ("phi3", False, 4, "gptq"),
    ],
)
def test_bytes_of_quantised_weights_are_those_of_the_file(
    model_type: str, tied: bool, bits: int, method: str, workdir: Path
) -> None:
    """Scales included; embedding, norms and biases have the activations' precision."""
    source = quantised.model(workdir, model_type, tie_word_embeddings=tied)
    form = Quantisation(bits, 32, method)
    stored = files.stored(files.ensure(source, form, Nearest()))  # the bits are those of the method
    packed = sum(one.values.nbytes + one.scales.nbytes for one in stored.values())
    others = sum(t.nbytes for name, t in source.tensors.items() if name not in stored)  # of fp32
    name = f"{form.name}-fp32"
    assert costs.weight_bytes(source.config, BASE, name) == packed + others
    # Beside 4 bits what has 8 is the checkpoint's in an fp16 graph; a tied head is the embedding.
    in_half = sum(
        one.values.nbytes
        + one.scales.nbytes
        - (0 if tied and key == "lm_head.weight" else 2 * math.prod(one.shape))
        for key, one in stored.items()
        if one.bits > bits
    )
    assert costs.weight_bytes(source.config, BASE, f"{form.name}-fp16") == packed + others // 2 - in_half
    embedding = costs.sizes(source.config).embedding * 4
    cache = 10 * costs.cache_bytes(source.config, BASE, "fp32")
    streamed = costs.streamed_bytes(source.config, BASE, name, Workload(10, decode=True))
    assert streamed == packed + others - embedding + cache
    streamed = costs.streamed_bytes(source.config, BASE, f"{form.name}-fp16", Workload(10, decode=True))
    read_of_table = embedding // 2 if tied and bits == 4 else 0
    assert streamed == packed + (others - embedding + cache) // 2 - in_half + read_of_table
    skip = SkipSet((0, 2), (0, 2))
    gone = [one for key, one in stored.items() if is_left_out(key, skip, rules_of(model_type))]
    lost = costs.weight_bytes(source.config, BASE, name) - costs.weight_bytes(source.config, skip, name)
    small = sum(
        t.nbytes for key, t in source.tensors.items()
        if key not in stored and is_left_out(key, skip, rules_of(model_type))
    )  # fmt: skip
    assert lost == sum(one.values.nbytes + one.scales.nbytes for one in gone) + small


def test_four_bits_are_worth_what_they_are() -> None:
    """Llama-2-7B: 0.53 bytes a weight in blocks of 64; head and embedding 2 each; on the CPU 1.03, 4."""
    layers = (32 * (4 * 4096**2 + 3 * 4096 * 11008)) * (0.5 + 2 / 64)
    for precision, table in (("int4-fp16", 2 + 2), ("int4-fp32", 1 + 2 / 64 + 4)):
        found = costs.weight_bytes(LLAMA_2_7B, BASE, precision)
        assert found == pytest.approx(layers + 4096 * 32000 * table, rel=1e-3)
    work = Workload(100, decode=True)
    saved = costs.streamed_bytes(LLAMA_2_7B, BASE, "fp16", work) / costs.streamed_bytes(
        LLAMA_2_7B, BASE, "int4-fp16", work
    )
    assert 3.4 < saved < 3.6
    assert costs.cache_bytes(LLAMA_2_7B, BASE, "int4-fp16") == costs.cache_bytes(LLAMA_2_7B, BASE, "fp16")
