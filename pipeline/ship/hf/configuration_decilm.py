# Copyright 2026 the authors of skip-pipeline. Licensed under the Apache License, Version 2.0.
"""Configuration only: this file holds no modelling code and computes nothing.

It gives vLLM, SGLang and TensorRT-LLM the entries of `block_configs` in a model's config.json
(`model_type: nemotron-nas`) as attributes: `config.block_configs[i].attention.no_op`, `.ffn.ffn_mult`.
`pipeline ship --to hf` writes it beside the weights.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """Llama's configuration, with what each layer has: `block_configs`, one entry a layer.

    Args:
        block_configs: for each layer `attention` (`no_op`, `n_heads_in_group`, `replace_with_linear`)
            and `ffn` (`no_op`, `ffn_mult`, `replace_with_linear`).
        kwargs: of LlamaConfig.
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **kwargs: Any) -> None:
        rope_theta = kwargs.get("rope_theta")
        super().__init__(**kwargs)
        if rope_theta is not None:
            self.rope_theta = rope_theta  # version 5 keeps it in rope_parameters alone; SGLang reads it here
        self.block_configs = [_attributes(block) for block in block_configs or ()]

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON takes it."""
        plain: dict[str, Any] = super().to_dict()
        plain["model_type"] = self.model_type
        plain["block_configs"] = [_plain(block) for block in self.block_configs]
        return plain


def _attributes(value: Any) -> Any:
    """Nested dicts as nested namespaces."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _attributes(part) for key, part in value.items()})
    return value


def _plain(value: Any) -> Any:
    """The inverse."""
    if isinstance(value, SimpleNamespace):
        return {key: _plain(part) for key, part in vars(value).items()}
    return value
