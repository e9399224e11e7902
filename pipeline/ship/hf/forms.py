"""In which form a variant can be written, or why in none; and which engines load it. Reads no weights.

Sources, by file: vLLM `model_executor/models/nemotron_nas.py`, SGLang `srt/models/nemotron_nas.py`,
TensorRT-LLM `_torch/models/modeling_nemotron_nas.py`, mlx-lm `models/nemotron-nas.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.ship.hf import ffn_width
from pipeline.ship.hf.engines import Engine, of_own_class, of_sublayers
from pipeline.ship.outline import Outline
from pipeline.types import shown

Form = Literal["own class", "nemotron-nas"]
_OTHERS = {
    "qwen2": "its q, k and v have biases, which TensorRT-LLM would pass over",
    "qwen3": "its queries and keys have norms",
    "gemma2": "it has norms behind its sublayers",
    "gemma3_text": "it has norms behind its sublayers",
    "olmo2": "its norms are behind its sublayers",
    "granite": "its embedding, attention, stream and logits are multiplied by numbers of their own",
    "smollm3": "some of its layers have no rotary embedding",
    "phi3": "its q, k and v are one matrix",
    "phi": "its attention and MLP are parallel and share a norm",
    "gpt_neox": "it has LayerNorms and no gated MLP",
    "qwen": "its q, k and v have biases, and its layers names of their own",
}
"""model_type → why its layers are not those of nemotron-nas, which has Llama's."""
_WAY = "leave out whole blocks, or ship it with --to gguf"


@dataclass(frozen=True, slots=True)
class FormVerdict:
    """How a variant can be written.

    Attributes:
        form: a checkpoint of the model's own class with fewer layers, or one of nemotron-nas.
        refusal: why it cannot be written in it.
        unless_forced: why it is written with `--force` alone.
        engines: which load it.
    """

    form: Form
    refusal: str | None
    unless_forced: str | None
    engines: tuple[Engine, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        engines = [engine.plain() for engine in self.engines]
        words = {"refusal": self.refusal, "unless_forced": self.unless_forced}
        return {"form": self.form, **words, "engines": engines}


def verdict(variant: Outline) -> FormVerdict:
    """Asks it of a variant."""
    if variant.whole_blocks:
        nothing = None if variant.kept_layers else "no layer is left"
        return FormVerdict("own class", nothing, None, of_own_class(variant))
    refusal = _refused_maps(variant) or _refused_model(variant)
    headless = None if refusal else _headless(variant)
    engines = () if refusal else of_sublayers(bool(variant.maps), headless)
    return FormVerdict("nemotron-nas", refusal, headless, engines)


def _refused_maps(variant: Outline) -> str | None:
    """What stands in for sublayers and has no form there."""
    runs = [place.name for place in (*variant.maps, *variant.constants) if place.kind == "block"]
    if runs:
        return f"a map stands in for {shown(runs)}; nemotron-nas has one for a single sublayer alone"
    if variant.constants:
        return (
            f"a constant stands in for {shown(one.name for one in variant.constants)}, and nemotron-nas has "
            "no biases; compensate with --with matrix"
        )
    if biased := [place.name for place, is_biased in variant.maps.items() if is_biased]:
        return (
            f"the map for {shown(biased)} has a bias, for which nemotron-nas has no tensor; "
            "compensate with --with matrix"
        )
    return None


def _refused_model(variant: Outline) -> str | None:
    """What the model has and nemotron-nas has not, or one of its engines takes wrongly without an error."""
    config = variant.config
    model_type, hidden, heads = config["model_type"], config["hidden_size"], config["num_attention_heads"]
    if model_type not in ("llama", "mistral"):
        why = _OTHERS.get(model_type, "its layers are not Llama's")
        return f"single sublayers of {model_type} have no form that engines load: {why}; {_WAY}"
    window = config["sliding_window"]
    if window is not None and window < config["max_position_embeddings"]:
        return f"it has a window of {window} tokens, and nemotron-nas has none; {_WAY}"
    if config["head_dim"] * heads != hidden:
        return f"head_dim is {config['head_dim']}, and mlx-lm takes {hidden} / {heads} for it; {_WAY}"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            return f"{key} is true, and TensorRT-LLM would pass over the biases without an error; {_WAY}"
    if config["hidden_act"] != "silu":
        return f"hidden_act is {config['hidden_act']!r}, and TensorRT-LLM would take silu; {_WAY}"
    width = config["intermediate_size"]
    has_mlp = len(variant.skip.mlp) < variant.num_layers
    if has_mlp and ffn_width.multiplier(width, hidden) is None:
        return (
            f"intermediate_size {width} is not a multiple of {ffn_width.STEP}, as nemotron-nas has it; {_WAY}"
        )
    if len(variant.skip.attention) == variant.num_layers:
        return f"no attention is left, without which none of its engines makes a cache; {_WAY}"
    return None


def _headless(variant: Outline) -> str | None:
    """Why vLLM and SGLang cannot run it: their residual stream begins with an attention."""
    first = variant.kept_layers[0]
    if variant.is_there((first, "attn")):
        return None
    return (
        f"attention of layer {first}, the first that has anything left, is left out, and vLLM and SGLang "
        "have no residual stream before the first attention"
    )
