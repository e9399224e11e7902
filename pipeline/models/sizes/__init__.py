"""What an architecture's parameters are, and are called, beside what config.json gives the sizes of.

One architecture a file, named by its model_type, with `RULES`. One without a file has Llama's sizes:
RMSNorms, a gated MLP, biases where the config asks for them, and Llama's names.

Legend: C hidden size, H query heads, G key/value heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SizeRules:
    """What one architecture has.

    Attributes:
        gated_mlp: the MLP has a gate, an up and a down matrix; without a gate, up and down.
        halved_mlp: the config's `intermediate_size` is that of gate and up together.
        layer_norms: norms have a scale and a bias (LayerNorm); else a scale alone (RMSNorm).
        attention_norms, mlp_norms: names, within a layer, of the norm before the sublayer and of the one
            behind it, whose output joins the stream; None: there is no such norm.
        shared_norm: attention and MLP read one norm, which is counted with the attention.
        head_norms: queries and keys have a norm of D numbers each.
        projection_norms: queries and keys have a norm each over all their heads: of H·D and of G·D numbers.
        qkv_bias, output_bias: of the attention's matrices; None: as the config's `attention_bias` says.
        mlp_bias: None: as the config's `mlp_bias` says.
        head_bias: the head has a bias of V numbers.
        learned_positions: a table of positions has so many rows more than the context; None: there is no such
            table.
        tied: whether head and embedding are one where the config does not say.
        writers: names, within a layer, of the matrices whose output is the attention's and the MLP's.
        values: name, within a layer, of the matrix that makes values; None: queries, keys and values have one
            matrix together.
        embedding, layers, final_norm, head: names of these modules in files of transformers' causal model;
            the first three have its `base_model_prefix` in common.
    """

    gated_mlp: bool = True
    halved_mlp: bool = False
    layer_norms: bool = False
    attention_norms: tuple[str | None, str | None] = ("input_layernorm", None)
    mlp_norms: tuple[str | None, str | None] = ("post_attention_layernorm", None)
    shared_norm: bool = False
    head_norms: bool = False
    projection_norms: bool = False
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    head_bias: bool = False
    learned_positions: int | None = None
    tied: bool = False
    writers: tuple[str, str] = ("self_attn.o_proj", "mlp.down_proj")
    values: str | None = "self_attn.v_proj"
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"

    def norms(self, kind: Literal["attn", "mlp"]) -> tuple[str | None, str | None]:
        """Of a sublayer: the norm before it, and the one behind it."""
        return self.attention_norms if kind == "attn" else self.mlp_norms

    @property
    def prefix(self) -> str:
        """What the names have in front that a base model alone lacks: transformers' `base_model_prefix`."""
        return self.layers.partition(".")[0]


def rules_of(model_type: str | None) -> SizeRules:
    """The rules of an architecture; Llama's where it has no file here."""
    if model_type not in {module.name for module in pkgutil.iter_modules(__path__)}:
        return SizeRules()
    rules: SizeRules = importlib.import_module(f"{__name__}.{model_type}").RULES
    return rules
