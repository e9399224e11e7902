"""The configuration class that goes with nemotron-nas: attributes, and every way there and back."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from pipeline.ship.hf import configuration_decilm
from tests import tiny
from tests.ship.hf import folders
from tests.ship.hf.test_nemotron_nas import compensated

SKIP = "attn1_2+mlp2"


@pytest.fixture
def folder(workdir: Path) -> Path:
    """A folder of nemotron-nas, with a rope of Llama 3's kind."""
    scaled = {"rope_scaling": tiny.LLAMA3, "rope_theta": 500000.0}
    base = folders.base(workdir, **{**folders.NAS, **scaled})
    return folders.shipped(folders.variant(base, SKIP)).folder


def loaded(folder: Path) -> Any:
    """The configuration, by the folder's own class."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=True)


def refuse_other(config: Any, folder: Path) -> None:
    """Every attribute that an engine reads, and every key of config.json."""
    assert type(config).__name__ == "DeciLMConfig" and config.model_type == "nemotron-nas"
    blocks = config.block_configs
    assert [block.attention.no_op for block in blocks] == [False, True, True, False]
    assert [block.attention.n_heads_in_group for block in blocks] == [2, None, None, 2]
    assert [block.ffn.no_op for block in blocks] == [False, False, True, False]
    assert [block.ffn.ffn_mult for block in blocks] == [6.0, 6.0, None, 6.0]
    assert not any(block.attention.replace_with_linear or block.ffn.replace_with_linear for block in blocks)
    # vLLM asks for these before it takes ffn_mult and the model's own activation.
    assert not any(hasattr(blocks[0].ffn, name) for name in ("hidden_act", "intermediate_size"))
    written = folders.config(folder)
    for key in written:
        getattr(config, key)  # version 5's heterogeneous configuration refuses to read some
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim"):
        assert getattr(config, key) == written[key]
    assert config.rope_theta == 500000.0 and config.rope_scaling["factor"] == 8.0
    plain = config.to_dict()
    for key in ("block_configs", "per_layer_config", "skip_pipeline", "auto_map", "architectures"):
        assert plain[key] == written[key], key


def test_it_survives_every_way(folder: Path, tmp_path: Path) -> None:
    config = loaded(folder)
    refuse_other(config, folder)
    refuse_other(copy.deepcopy(config), folder)
    refuse_other(pickle.loads(pickle.dumps(config)), folder)  # noqa: S301 - our own
    refuse_other(type(config).from_dict(config.to_dict()), folder)
    for use_diff in (True, False):
        text = json.loads(config.to_json_string(use_diff=use_diff))
        assert text["block_configs"] == folders.config(folder)["block_configs"]
        assert text["model_type"] == "nemotron-nas"
    saved = tmp_path / "saved"
    config.save_pretrained(saved)
    shutil.copy(folder / "configuration_decilm.py", saved)
    refuse_other(loaded(saved), folder)
    assert "nemotron-nas" in repr(config)


def test_it_is_configuration_alone(folder: Path) -> None:
    text = (folder / "configuration_decilm.py").read_text()
    assert text == Path(configuration_decilm.__file__).read_text()
    assert "import torch" not in text and "Configuration only" in text and "Apache License" in text
    assert sorted(file.name for file in folder.glob("*.py")) == ["configuration_decilm.py"]


def test_the_tokenizer_loads_beside_it(folder: Path) -> None:
    words = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert words.decode(words("a cat")["input_ids"]) == "a cat"


def test_maps_are_not_skipped_sublayers(workdir: Path) -> None:
    base = folders.base(workdir, **folders.NAS)
    folder = folders.shipped(compensated(base, SKIP, "linear")).folder
    blocks = loaded(folder).block_configs
    assert [block.attention.replace_with_linear for block in blocks] == [False, True, True, False]
    assert not any(block.attention.no_op or block.ffn.no_op for block in blocks)
    assert "per_layer_config" not in folders.config(folder) or not folders.config(folder)["per_layer_config"]
