"""README.md of a folder."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import store
from tests.ship.hf import folders


def test_it_says_what_the_folder_is(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **folders.NAS), "attn1-2+mlp3")
    text = (folders.shipped(graph).folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n---\n# tiny, attn1-2+mlp3\n")
    assert "attention of layers 1-2 and MLP of layers 3 (of 4) left out" in text
    assert "Source: folder ../../models/tiny" in text and "PyTorch: not checked" in text
    assert "`vllm serve . --trust-remote-code`" in text and "holds no modelling code" in text
    assert "| transformers | no: it has the configuration of nemotron-nas alone, no model |" in text


def test_a_model_of_the_hub_is_named(workdir: Path) -> None:
    base = folders.base(workdir, num_hidden_layers=3)
    record = store.read_json(base.parent / "source.json")
    named = {**record, "kind": "hub", "from": "org/name", "revision": "0" * 40}
    (base.parent / "source.json").write_text(json.dumps(named))
    text = (folders.shipped(folders.variant(base, "block1")).folder / "README.md").read_text()
    assert "base_model: org/name\n" in text and f"hub org/name at revision {'0' * 40}" in text
    assert "`llama` with 2 layers of 3, counted anew" in text
    assert "configuration_decilm" not in text
