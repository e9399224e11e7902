"""nemotron-nas by its published reading rules, in PyTorch: what the engines' readers have in common.

Written from mlx-lm `models/nemotron-nas.py`, vLLM `model_executor/models/nemotron_nas.py` and TensorRT-LLM
`_torch/models/modeling_nemotron_nas.py`: a layer has a norm and an attention unless `attention.no_op`, a norm
and an MLP unless `ffn.no_op`; a sublayer with `replace_with_linear` is one matrix without a bias; every MLP's
width comes of `ffn_mult`; the rope is Llama's. Every tensor of the file must be used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb


class PublishedReader:
    """A folder of nemotron-nas in fp32.

    Args:
        folder: config.json and safetensors.
        digits: to which `ffn_mult` is rounded first; mlx-lm has 6.
    """

    def __init__(self, folder: Path, digits: int | None = None) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        assert self.config["model_type"] == "nemotron-nas"
        assert self.config["architectures"] == ["DeciLMForCausalLM"]
        assert len(self.config["block_configs"]) == self.config["num_hidden_layers"]
        self.digits = digits
        self.tensors: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.tensors |= {name: one.float() for name, one in load_file(file).items()}
        self.used: set[str] = set()

    def weight(self, name: str, *shape: int) -> torch.Tensor:
        self.used.add(f"{name}.weight")
        tensor = self.tensors[f"{name}.weight"]
        assert tuple(tensor.shape) == shape, (name, tensor.shape, shape)
        return tensor

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.weight(name, x.shape[-1])

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """[B, T, V]; the whole text at once."""
        c = self.config
        hidden, vocabulary = c["hidden_size"], c["vocab_size"]
        embedding = self.weight("model.embed_tokens", vocabulary, hidden)
        x = embedding[torch.tensor(ids)]
        angles = self.angles(x, ids.shape[1])
        for i, block in enumerate(c["block_configs"]):
            layer = f"model.layers.{i}"
            if not block["attention"]["no_op"]:
                h = self.norm(x, f"{layer}.input_layernorm")
                x = x + self.attention(h, block["attention"], f"{layer}.self_attn", angles)
            if not block["ffn"]["no_op"]:
                h = self.norm(x, f"{layer}.post_attention_layernorm")
                x = x + self.mlp(h, block["ffn"], f"{layer}.mlp")
        x = self.norm(x, "model.norm")
        head = embedding if c["tie_word_embeddings"] else self.weight("lm_head", vocabulary, hidden)
        assert self.used == set(self.tensors), set(self.tensors) - self.used
        logits: np.ndarray = (x @ head.T).numpy()
        return logits

    def angles(self, x: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' own for Llama, of the keys of version 4."""
        c = self.config
        config = LlamaConfig(
            hidden_size=c["hidden_size"],
            num_attention_heads=c["num_attention_heads"],
            max_position_embeddings=c["max_position_embeddings"],
            rope_theta=c["rope_theta"],
            rope_scaling=c["rope_scaling"],
        )
        cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(length)[None])
        return cos, sin

    def attention(
        self, h: torch.Tensor, one: dict[str, Any], name: str, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        hidden, heads = self.config["hidden_size"], self.config["num_attention_heads"]
        if one["replace_with_linear"]:
            assert one["n_heads_in_group"] is None
            return h @ self.weight(f"{name}.linear_attn", hidden, hidden).T
        groups, width = heads // one["n_heads_in_group"], hidden // heads

        def heads_of(part: str, count: int) -> torch.Tensor:
            y = h @ self.weight(f"{name}.{part}_proj", count * width, hidden).T
            return y.unflatten(-1, (count, width)).transpose(1, 2)

        q, k = apply_rotary_pos_emb(heads_of("q", heads), heads_of("k", groups), *angles)
        k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, heads_of("v", groups)))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2) @ self.weight(f"{name}.o_proj", hidden, hidden).T

    def mlp(self, h: torch.Tensor, one: dict[str, Any], name: str) -> torch.Tensor:
        hidden = self.config["hidden_size"]
        if one["replace_with_linear"]:
            assert one["ffn_mult"] is None
            return h @ self.weight(f"{name}.linear_mlp", hidden, hidden).T
        mult = one["ffn_mult"] if self.digits is None else round(one["ffn_mult"], self.digits)
        least = int(2 * mult * hidden / 3)
        width = least if least % 256 == 0 else least + 256 - least % 256
        gate = functional.silu(h @ self.weight(f"{name}.gate_proj", width, hidden).T)
        up = h @ self.weight(f"{name}.up_proj", width, hidden).T
        return (gate * up) @ self.weight(f"{name}.down_proj", hidden, width).T
