"""Tiny folders of pruned models in NVIDIA's form: `nemotron-nas`, one block config a layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_left_out
from pipeline.types import SkipSet
from tests import tiny, tiny_gguf

WIDTH, HIDDEN = 256, 64
"""ffn_mult says multiples of 256 only."""
FFN_MULT = 6.0
"""2 · 6 · 64 / 3 is 256."""


def whole(folder: Path, **changes: Any) -> Path:
    """A Llama that such a config can say."""
    return tiny_gguf.source(
        folder, "llama", num_hidden_layers=4, intermediate_size=WIDTH, head_dim=16, **changes
    )


def blocks(skip: SkipSet, layers: int, group: int = 2, **ffn: Any) -> list[dict[str, dict[str, Any]]]:
    """block_configs, as NVIDIA's class saves them."""
    nothing = {"replace_with_linear": False, "sparsify": None}
    return [
        {
            "attention": {
                "n_heads_in_group": None if (i, "attn") in skip else group, "no_op": (i, "attn") in skip,
                "num_sink_tokens": None, "unshifted_sink": False, "window_length": None,
                "use_prefill_window_in_sink_attention": False, **nothing,
            },
            "ffn": {"no_op": (i, "mlp") in skip, **nothing,
                    **({"ffn_mult": None} if (i, "mlp") in skip else ffn or {"ffn_mult": FFN_MULT})},
        }
        for i in range(layers)
    ]  # fmt: skip


def written(source: Path, folder: Path, skip: SkipSet, **changes: Any) -> Path:
    """The variant of a whole checkpoint, in this form; keys of its config.json change, None removes one."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special", "generation")):
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config |= {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "intermediate_size": None,
        "num_key_value_heads": None,
        "block_configs": blocks(skip, config["num_hidden_layers"]),
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (folder / "configuration_decilm.py").write_text("raise SystemExit('this is never run')\n")
    tensors = {
        name: tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if not is_left_out(name, skip, rules_of("llama"))
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LLAMA3 = {"rope_scaling": dict(tiny.LLAMA3), "max_position_embeddings": 1024}
