"""How the GGUF of an architecture differs from its Hugging Face checkpoint: names, keys, orders of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.models.gguf import gemma, longrope, rope
from pipeline.models.gguf.numbers import Numbers

_QKVO = tuple(f"self_attn.{part}_proj" for part in "qkvo")
_MLP = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
_COMMON = {
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
_SINGLE = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
}  # fmt: skip
_TWO_NORMS = {"post_attention_layernorm": "ffn_norm"}
_FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_LLAMA = {**_COMMON, **_SINGLE, **_TWO_NORMS}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an architecture's GGUF differs from the Hugging Face checkpoint.

    Attributes:
        class_name: of the Hugging Face model.
        model_type: of config.json.
        places: place in a layer, in Hugging Face's words → in llama.cpp's.
        permuted: the rows of q and k, and their biases, are in llama.cpp's order.
        norm_offset: what the file's norms have more than the checkpoint's.
        partly_rotated: rope may turn a part of a head.
        biases: places of a layer that may have biases, each with the key of config.json that says so; None
            where they always have one.
        activation: key of config.json and its value.
        keys: of the architecture that are read beside those of all.
        tables: tensors that are no weights.
        further: what config.json has beyond Llama's; None: nothing.
    """

    class_name: str
    model_type: str
    places: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    permuted: bool = False
    norm_offset: float = 0.0
    partly_rotated: bool = False
    biases: tuple[tuple[str | None, tuple[str, ...]], ...] = ()
    activation: tuple[str, str] = ("hidden_act", "silu")
    keys: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset({rope.FREQUENCIES})
    further: Callable[[Numbers, Mapping[str, Any]], dict[str, Any]] | None = None


def _gemma(number: int, keys: set[str], places: Mapping[str, str], **parts: Any) -> Dialect:
    name = f"Gemma{number}ForCausalLM"
    activation = ("hidden_activation", "gelu_pytorch_tanh")
    return Dialect(
        name, places={**_COMMON, **_SINGLE, **_FOUR_NORMS, **places}, norm_offset=1.0, activation=activation,
        keys=frozenset(keys), tables=frozenset(), **parts
    )  # fmt: skip


_OF_LLAMA = Dialect(
    "LlamaForCausalLM", "llama", permuted=True, biases=(("attention_bias", _QKVO), ("mlp_bias", _MLP))
)
DIALECTS = {
    "llama": _OF_LLAMA,
    "deci": _OF_LLAMA,  # with one count a layer (`layers`), where sublayers were left out
    "qwen2": Dialect("Qwen2ForCausalLM", "qwen2", biases=((None, _QKVO[:3]),)),
    "qwen3": Dialect(
        "Qwen3ForCausalLM", "qwen3", places={**_LLAMA, **_HEAD_NORMS}, biases=(("attention_bias", _QKVO),)
    ),
    "phi3": Dialect(
        "Phi3ForCausalLM", "phi3", places={**_COMMON, **_FUSED, **_TWO_NORMS}, partly_rotated=True,
        keys=frozenset(longrope.KEYS), tables=frozenset({longrope.LONG, longrope.SHORT}),
        further=longrope.phi3,
    ),
    "gemma2": _gemma(2, gemma.KEYS_2, {}, model_type="gemma2", further=gemma.gemma2),
    "gemma3": _gemma(3, gemma.KEYS_3, _HEAD_NORMS, model_type="gemma3_text", further=gemma.gemma3),
}  # fmt: skip
"""By the GGUF's architecture. Mistral 7B's is `llama`: without its window, as llama.cpp runs it."""


_SAME = {"mistral": "llama"}
"""model_type → that of the dialect which llama.cpp has for it."""


def of_model_type(model_type: str) -> Dialect:
    """The dialect by the Hugging Face name of its architecture."""
    return next(dialect for dialect in DIALECTS.values() if dialect.model_type == model_type)


def architecture(model_type: str) -> str | None:
    """llama.cpp's name of an architecture; None where its files are not read here."""
    wanted = _SAME.get(model_type, model_type)
    return next((arch for arch, dialect in DIALECTS.items() if dialect.model_type == wanted), None)
