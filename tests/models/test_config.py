"""config.json: both forms mean the same, defaults are those of transformers' classes, nonsense is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CONFIG_MAPPING

from pipeline.graphs import architectures, export
from pipeline.models import checkpoint, config, costs, drop_lists
from pipeline.models.config import Config, read_config
from pipeline.types import BASE, UserError
from tests import tiny, truth

FILE = Path("graphs/tiny/config.json")
TYPES = config.known()


def read(model_type: str = "llama", **keys: Any) -> Config:
    """A config.json with these keys alone, as it is read."""
    return config.normalised({"model_type": model_type, **keys}, FILE)


# ---- defaults -------------------------------------------------------------------------------------------


def test_every_authored_architecture_has_its_keys() -> None:
    assert architectures.supported() == TYPES


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_the_class(model_type: str) -> None:
    """Every key of ours with the class's value; `None` for what the class derives or has not."""
    theirs = CONFIG_MAPPING[model_type]()
    derived = {"head_dim", "num_key_value_heads", "layer_types"}
    for key, value in config.defaults(model_type).items():
        if value is None and key in derived:
            continue
        if key == "sliding_window" and hasattr(theirs, "use_sliding_window"):
            assert theirs.sliding_window is None  # the class drops it where the window is switched off
            assert CONFIG_MAPPING[model_type](use_sliding_window=True).sliding_window == value
            continue
        assert getattr(theirs, key, None) == value, key


@pytest.mark.parametrize("model_type", TYPES)
def test_what_the_class_derives_is_derived_here(model_type: str) -> None:
    theirs, ours = CONFIG_MAPPING[model_type](), read(model_type)
    assert ours["num_key_value_heads"] == theirs.num_key_value_heads
    given = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours["head_dim"] == given
    assert ours["layer_types"] == getattr(theirs, "layer_types", ours["layer_types"])


@pytest.mark.parametrize("model_type", TYPES)
def test_no_key_of_the_class_is_unknown_here(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    """What transformers' class writes of itself passes without a warning: each of its keys is decided."""
    whole = config.normalised(CONFIG_MAPPING[model_type]().to_dict(), FILE)
    with caplog.at_level(logging.WARNING):
        config.refuse_foreign(whole, FILE)
    assert not caplog.records


class Recorder(Mapping[str, Any]):
    """A config that keeps the keys that are asked for."""

    def __init__(self, values: Config) -> None:
        self.values_of, self.keys_read = values, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return self.values_of[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Mapping's own would hide a key that is missing."""
        self.keys_read.add(key)
        return self.values_of.get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)


VARIED: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "phi3": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("model_type", TYPES)
def test_authored_code_reads_no_key_without_a_default(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key in the code of an architecture or of costs needs its value in the architecture's table."""
    monkeypatch.setattr(config, "refuse_foreign", lambda *_: None)  # it looks at every key
    folder = tiny.checkpoint(tmp_path, model_type, **VARIED.get(model_type, {}))
    opened = checkpoint.open_checkpoint(folder)
    recorder = Recorder(opened.config)
    object.__setattr__(opened, "config", recorder)
    architectures.decoder(opened, "fp32", BASE).author()
    costs.sizes(recorder)
    decided = {*config.defaults(model_type), *config.fixed(model_type), "model_type", "layer_types"}
    decided |= {"auto_map", drop_lists.ATTENTION, drop_lists.MLP}  # of other tools; none by default
    assert recorder.keys_read <= decided
    assert {"rope_theta", "head_dim", "tie_word_embeddings", "num_hidden_layers"} <= recorder.keys_read


REMOVABLE = {
    "llama": {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0, "attention_bias": False},
    "mistral": {"sliding_window": 4096, "rms_norm_eps": 1e-6, "num_key_value_heads": 8},
    "phi": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
    "phi3": {"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0, "sliding_window": None},
    "qwen2": {"max_window_layers": 28, "sliding_window": 4096, "num_key_value_heads": 32},
    "qwen3": {"head_dim": 128, "rms_norm_eps": 1e-6, "num_key_value_heads": 32},
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
}
"""With 32 heads every class's own number of key/value heads divides them."""


def relative_error(folder: Path, ids: np.ndarray[Any, Any]) -> float:
    """Of the graph against what transformers itself loads from the very same folder."""
    graph = export.export_base(checkpoint.resolve(str(folder), in_place=True))
    return truth.relative_error(truth.graph_logits(graph, ids), truth.logits_of(truth.loaded(folder), ids))


@pytest.mark.parametrize(
    ("model_type", "key"), [(kind, key) for kind, keys in REMOVABLE.items() for key in [*keys, "all of them"]]
)
def test_a_missing_key_is_what_transformers_takes_it_for(model_type: str, key: str, tmp_path: Path) -> None:
    """The file lacks the key; the graph of the file equals transformers' model of the file."""
    keys = REMOVABLE[model_type]
    tiny.checkpoint(tmp_path, model_type, **{**SMALL, "head_dim": 16, **keys})
    file = tmp_path / "config.json"
    removed = set(keys) if key == "all of them" else {key}
    left = {k: v for k, v in json.loads(file.read_text()).items() if k not in removed}
    file.write_text(json.dumps(left))
    assert not removed & set(left)
    assert relative_error(tmp_path, np.random.default_rng(0).integers(3, 96, (2, 30))) < 1e-4


@pytest.mark.slow
def test_mistrals_own_window_is_in_a_graph_whose_config_does_not_say_it(tmp_path: Path) -> None:
    """4096 keys: a prefill of 4200 tokens sees less than everything, and the graph sees what PyTorch sees."""
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    tiny.checkpoint(tmp_path, "mistral", **small, intermediate_size=16, max_position_embeddings=8192,
                    sliding_window=4096)  # fmt: skip
    file = tmp_path / "config.json"
    left = {k: v for k, v in json.loads(file.read_text()).items() if k != "sliding_window"}
    file.write_text(json.dumps(left))
    assert read_config(tmp_path)["sliding_window"] == 4096
    assert relative_error(tmp_path, np.random.default_rng(0).integers(3, 96, (1, 4200))) < 1e-4


# ---- both forms -----------------------------------------------------------------------------------------

LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LONG_OUTSIDE = {"original_max_position_embeddings": 16, "hidden_size": 64, "num_attention_heads": 4}
PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "float16"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "float16"},
    ),
    "llama3": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": tiny.LLAMA3},
        {"rope_parameters": {**tiny.LLAMA3, "rope_theta": 5e5}},
    ),
    "llama3, its type by its old name": (
        "llama",
        {"rope_scaling": tiny.LLAMA3},
        {"rope_scaling": {"type": "llama3", **{k: v for k, v in tiny.LLAMA3.items() if k != "rope_type"}}},
    ),
    "partial": (
        "phi",
        {"rope_theta": 5e5, "partial_rotary_factor": 0.25},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}},
    ),
    "longrope": (
        "phi3",
        {"rope_theta": 5e5, "rope_scaling": {"type": "longrope", **LONG}, **LONG_OUTSIDE},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 5e5,
                "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 16,
                **LONG,
            },
            **LONG_OUTSIDE,
        },
    ),
    "one a type of layer": (
        "qwen2",
        {"rope_theta": 5e5, "num_hidden_layers": 2},
        {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 5e5}
                for kind in ("full_attention", "sliding_attention")
            },
            "layer_types": ["full_attention"] * 2,
            "num_hidden_layers": 2,
        },
    ),
    "layer_types": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "num_hidden_layers": 2},
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "types that say what the window says": (
        "mistral",
        {"num_hidden_layers": 2, "sliding_window": 9},
        {"num_hidden_layers": 2, "sliding_window": 9, "layer_types": ["sliding_attention"] * 2},
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_forms_mean_the_same(pair: str) -> None:
    model_type, old, new = PAIRS[pair]
    one, other = read(model_type, **old), read(model_type, **new)
    ignored = {"dtype", "torch_dtype"}
    assert {k: v for k, v in one.items() if k not in ignored} == {
        k: v for k, v in other.items() if k not in ignored
    }
    given = config.for_transformers(one)
    assert given == config.for_transformers(other) and not ignored & set(given)


def test_transformers_reads_what_it_is_given() -> None:
    for model_type, _, new in PAIRS.values():
        ours = read(model_type, **new)
        theirs = CONFIG_MAPPING[model_type].from_dict(config.for_transformers(ours))
        assert theirs.rope_theta == ours["rope_theta"]
        assert (theirs.rope_scaling or {}).get("rope_type", (theirs.rope_scaling or {}).get("type")) == (
            ours["rope_scaling"] or {}
        ).get("rope_type")
        assert getattr(theirs, "partial_rotary_factor", 1.0) == ours["partial_rotary_factor"]
        assert getattr(theirs, "sliding_window", None) == ours["sliding_window"]


# ---- what is refused ------------------------------------------------------------------------------------

WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
NONSENSE: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
    ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps is None"),
    ("phi", {"layer_norm_eps": -1}, "layer_norm_eps is -1"),
    ("llama", {"rope_theta": 0}, "rope_theta is 0"),
    ("llama", {"rope_theta": -5.0}, "rope_theta is -5.0"),
    ("llama", {"rope_theta": None}, "rope_theta is None"),
    ("llama", {"rope_theta": float("nan")}, "rope_theta is nan"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ("llama", {"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("llama", {"vocab_size": -1}, "vocab_size is -1"),
    ("llama", {"vocab_size": 2**40}, "vocab_size is 1099511627776"),
    ("llama", {"hidden_size": "64"}, "hidden_size is '64'"),
    ("llama", {"intermediate_size": []}, r"intermediate_size is \[\]"),
    (
        "llama",
        {"num_attention_heads": 6, "num_key_value_heads": 4},
        "num_attention_heads 6 is not a multiple",
    ),
    (
        "mistral",
        {"num_attention_heads": 4},
        "num_attention_heads 4 is not a multiple of num_key_value_heads 8",
    ),
    ("llama", {"head_dim": 15}, "head_dim 15 .* even number"),
    ("llama", {"head_dim": 0}, "head_dim is 0"),
    ("llama", {"hidden_size": 60, "num_attention_heads": 4}, "head_dim 15 .* even number"),
    ("phi", {"head_dim": 16, "partial_rotary_factor": 0.2}, "rotates 3 numbers"),
    ("phi", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
    ("qwen3", {"head_dim": None}, "head_dim is null"),
    ("llama", {"tie_word_embeddings": "x"}, "tie_word_embeddings is 'x'"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ("llama", {"attention_bias": "false"}, "attention_bias is 'false'"),
    ("llama", {"hidden_act": 3}, "hidden_act is 3"),
    ("llama", {"model_type": ["llama"]}, r"model_type is \['llama'\]"),
    ("llama", {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ("llama", {"eos_token_id": "2"}, "eos_token_id is '2'"),
    ("opt", {"num_hidden_layers": True}, "num_hidden_layers is True"),
    ("opt", {"vocab_size": "96"}, "vocab_size is '96'"),
    # windows
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("mistral", {"sliding_window": 8, "use_sliding_window": False}, "use_sliding_window is false"),
    (
        "qwen2",
        {**WINDOW, "num_hidden_layers": 2, "layer_types": ["full_attention"]},
        "1 entries for 2 layers",
    ),
    (
        "qwen2",
        {**WINDOW, "num_hidden_layers": 1, "layer_types": ["chunked_attention"]},
        "'chunked_attention'",
    ),
    ("qwen2", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "layer_types contradicts"),
    ("llama", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "layer_types contradicts"),
    ("mistral", {"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "layer_types contradicts"),
    ("qwen2", {"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
    # rope
    ("llama", {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "the type 'spiral'"),
    ("llama", {"rope_scaling": {"factor": 2.0}}, "the type None"),
    ("llama", {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, r"the type \['linear'\]"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "has no factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor is '4'"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": True}}, "factor is True"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}, "factor is nan"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 3.0}}, "'mscale'"),
    ("llama", {"rope_scaling": {**tiny.LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must be above"),
    ("llama", {"rope_scaling": {**tiny.LLAMA3, "original_max_position_embeddings": 64.5}}, "is 64.5"),
    ("llama", {"rope_scaling": {k: v for k, v in tiny.LLAMA3.items() if k != "factor"}}, "has no factor"),
    ("llama", {"rope_scaling": {**tiny.LLAMA3, "type": "linear"}}, "type and rope_type, which differ"),
    (
        "llama",
        {"rope_scaling": tiny.LLAMA3, "original_max_position_embeddings": 128},
        "original_max_position_embeddings is 128, and 64 in rope_scaling",
    ),
    (
        "llama",
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_theta is 10000.0, and 500000.0 in rope_parameters",
    ),
    (
        "llama",
        {"rope_scaling": tiny.LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "contradict each other",
    ),
    (
        "qwen2",
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e4},
                "sliding_attention": {"rope_theta": 1e6},
            }
        },
        "differs from layer to layer",
    ),
    (
        "phi3",
        {**LONG_OUTSIDE, "rope_scaling": {"type": "longrope", **LONG, "long_factor": [1.0]}},
        "1 numbers",
    ),
    ("phi3", {**LONG_OUTSIDE, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "no short_factor"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "phi3 has longrope alone"),
    ("llama", {"head_dim": 16, "rope_scaling": {"type": "longrope", **LONG}}, "needs original_max_position"),
    (
        "phi3",
        {**LONG_OUTSIDE, "rope_scaling": {"type": "longrope", **LONG, "factor": 3.0}},
        "factor in rope_scaling is 3.0, but 4096 / 16",
    ),
    (
        "phi3",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "rope_parameters": {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 16},
        },
        "original_max_position_embeddings is 4096, and 16 in rope_parameters",
    ),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), NONSENSE)
def test_what_no_model_has_is_refused_by_key(model_type: str, keys: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        config.normalised({"model_type": model_type, **keys}, FILE)
    assert str(caught.value).startswith(str(FILE)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["[1]", "null", '"x"', "{", "\xff"])
def test_a_config_that_is_no_object_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_nan_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "rms_norm_eps": NaN}')
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


FOREIGN: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq, 4 bits\)"),
    ("llama", {"quantization": {"bits": 4, "group_size": 64}}, "quantised"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"sliding_window": 64}, "sliding_window is 64"),
    ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ("phi3", {"mlp_bias": True}, "mlp_bias is True"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("llama", {"num_experts": 8}, "num_experts is 8"),
    ("mistral", {"num_local_experts": 8}, "num_local_experts is 8"),
    ("llama", {"moe_intermediate_size": 64}, "moe_intermediate_size is 64"),
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),
    ("llama", {"logit_scale": 0.0625}, "logit_scale is 0.0625"),
    ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
    ("llama", {"scale_emb": 12}, "scale_emb is 12"),
    ("llama", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256"),
    ("llama", {"is_causal": False}, "is_causal is False"),
    ("llama", {"use_qk_norm": True}, "use_qk_norm is True"),
    ("llama", {"clip_qkv": 8}, "clip_qkv is 8"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("llama", {"lm_head_bias": True}, "lm_head_bias is True"),
    ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers is"),
    ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads is"),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), FOREIGN)
def test_what_is_not_authored_is_refused_by_name(model_type: str, keys: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        config.refuse_foreign(read(model_type, **keys), FILE)


PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2": {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False,
                "pretraining_tp": 1, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "Vicuna": {"model_type": "llama", "_name_or_path": "x", "max_sequence_length": 2048, "pad_token_id": 0},
    "Phi-4-mini": {"model_type": "phi3", "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
                   "mlp_bias": False, "attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                   "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "sliding_window": 262144},
    "Phi-2": {"model_type": "phi", "qk_layernorm": False, "embd_pdrop": 0.0, "resid_pdrop": 0.1},
    "Qwen2.5": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768,
                "max_window_layers": 21, "use_mrope": False, "attention_bias": True},
    "unsloth": {"model_type": "llama", "unsloth_fixed": True, "unsloth_version": "2025.1", "use_cache": True},
    "Yarn-Mistral": {"model_type": "mistral", "rope_scaling": {"type": "yarn", "factor": 8.0,
                     "finetuned": True, "original_max_position_embeddings": 8192}},
    "LLM-Drop": {"model_type": "mistral", "drop_attn_list": [3, 1], "drop_mlp_list": [2],
                 "auto_map": {"AutoConfig": "x.Y"}},
    "a window beyond the context": {"model_type": "llama", "sliding_window": 4096},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_pass_in_silence(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config.refuse_foreign(config.normalised(PUBLISHED[name], FILE), FILE)
    assert not caplog.records


def test_a_key_that_nobody_knows_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config.refuse_foreign(read(colour="blue", shade=False), FILE)
    assert "colour" in caplog.text and "shade" not in caplog.text


def test_generation_config_is_read_as_it_is(tmp_path: Path) -> None:
    assert config.read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert config.read_generation_config(tmp_path) == {"eos_token_id": [1, 2]}
