"""config.json as it is read: every key that is missing has the value of transformers' class."""

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
from tests.models.config import FILE, read

TYPES = config.known()


def test_every_authored_architecture_has_its_keys() -> None:
    assert architectures.supported() == TYPES


@pytest.mark.parametrize("model_type", TYPES)
def test_defaults_are_those_of_the_class(model_type: str) -> None:
    """Every key of ours with the class's value; `None` for what the class derives or has not."""
    theirs = CONFIG_MAPPING[model_type]()
    names = {ours: name for name, ours in config.names(model_type).items()}
    said = config.older_form(theirs.to_dict(), FILE)  # transformers 5 keeps the rope's numbers together
    derived = {"head_dim", "num_key_value_heads", "layer_types", "no_rope_layers"}
    for key, value in config.defaults(model_type).items():
        if value is None and key in derived:
            continue
        if key == "sliding_window" and hasattr(theirs, "use_sliding_window"):
            assert theirs.sliding_window is None  # the class drops it where the window is switched off
            assert CONFIG_MAPPING[model_type](use_sliding_window=True).sliding_window == value
            continue
        name = key if key in said or hasattr(theirs, key) else names.get(key, key)
        assert said.get(name, getattr(theirs, name, None)) == value, key


@pytest.mark.parametrize("model_type", TYPES)
def test_what_the_class_derives_is_derived_here(model_type: str) -> None:
    theirs, ours = CONFIG_MAPPING[model_type](), read(model_type)
    heads = theirs.num_attention_heads
    assert ours["num_key_value_heads"] == getattr(theirs, "num_key_value_heads", heads)
    given = getattr(theirs, "head_dim", None) or theirs.hidden_size // heads
    assert ours["head_dim"] == given
    assert ours["layer_types"] == getattr(theirs, "layer_types", ours["layer_types"])
    assert ours.get("no_rope_layers") == getattr(theirs, "no_rope_layers", None)


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
    decided |= {
        "auto_map",
        drop_lists.ATTENTION,
        drop_lists.MLP,
        drop_lists.LAYERS,
    }  # of other tools; none by default
    assert recorder.keys_read <= decided
    assert {"rope_theta", "head_dim", "tie_word_embeddings", "num_hidden_layers"} <= recorder.keys_read


REMOVABLE = {
    "llama": {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0, "attention_bias": False},
    "mistral": {"sliding_window": 4096, "rms_norm_eps": 1e-6, "num_key_value_heads": 8},
    "phi": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"},
    "gemma2": {
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window_pattern": 2,
        "num_key_value_heads": 4,
    },
    "gpt_neox": {
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "hidden_act": "gelu",
    },
    "qwen": {
        "layer_norm_epsilon": 1e-6,
        "rotary_pct": 1.0,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "max_position_embeddings": 8192,
    },
    "olmo2": {"rms_norm_eps": 1e-5, "attention_bias": False, "tie_word_embeddings": False},
    "granite": {
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "rms_norm_eps": 1e-6,
    },
    "smollm3": {
        "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    },
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
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "qwen": {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_channels": 16},
    "smollm3": {"num_hidden_layers": 4},
}
"""GPT-NeoX's and Qwen's heads follow from other sizes: 16 numbers; SmolLM3's fourth layer has no rope."""


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
    tiny.checkpoint(
        tmp_path, model_type, **{**SMALL, "head_dim": 16, **OTHER_SIZES.get(model_type, {}), **keys}
    )
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


def test_generation_config_is_read_as_it_is(tmp_path: Path) -> None:
    assert config.read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert config.read_generation_config(tmp_path) == {"eos_token_id": [1, 2]}
