"""What a variant costs, from config.json and the skip set alone: parameters, FLOPs, bytes; and the ceiling of a speed-up.

Legend: S new tokens, T = P + S, K positions whose logits are wanted, H query heads, G key/value heads, D head dimension,
C hidden size, F feed-forward size, V vocabulary. A multiply-add counts as two FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass


from pipeline.models.checkpoint import Config
from pipeline.types import BASE, SkipSet, UserError

BYTES = {"fp32": 4, "fp16": 2}
_PLAIN = ("phi", "gpt_neox", "opt")
"""LayerNorms and biases everywhere, an MLP without a gate."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of one attention and one MLP sublayer (weights of matrix products apart), and of what every variant has."""

    attention: int
    attention_products: int
    mlp: int
    mlp_products: int
    embedding: int
    head: int
    tied: bool
    layers: int
    score_flops: int  # per query and key of one attention: 4 · H · D
    cache: int  # numbers per token of one attention: 2 · G · D


def sizes(config: Config) -> Sizes:
    """The sizes that a config.json implies, for the architectures authored here and for GPT-NeoX and OPT.

    Raises:
        UserError: the config names its sizes otherwise (GPT-2's n_embd, say).
    """
    try:
        c, v, h = config["hidden_size"], config["vocab_size"], config["num_attention_heads"]
        f, layers = config.get("intermediate_size") or config["ffn_dim"], config["num_hidden_layers"]
    except KeyError as error:
        raise UserError(
            f"config.json of {config.get('model_type')!r} has no {error}: its costs are not known here"
        ) from None
    g = config.get("num_key_value_heads") or h
    d = config.get("head_dim") or c // h
    kind = config.get("model_type")
    plain = kind in _PLAIN
    attention = c * d * (h + 2 * g) + h * d * c
    mlp = (2 if plain else 3) * c * f
    norm = 2 * c if plain else c
    biases = d * (h + 2 * g) if plain or kind == "qwen2" or config.get("attention_bias") else 0
    biases += c if plain or (kind == "llama" and config.get("attention_bias")) else 0
    extra = (2 * d if kind == "qwen3" else 0) + biases
    # phi has one norm a layer, read by both branches; it is counted with the attention
    mlp_rest = (
        (f + c if plain else 0)
        + (0 if kind == "phi" else norm)
        + (2 * f + c if config.get("mlp_bias") else 0)
    )
    return Sizes(
        attention=attention + norm + extra,
        attention_products=attention,
        mlp=mlp + mlp_rest,
        mlp_products=mlp,
        # OPT learns its positions, two more than it uses
        embedding=v * c + ((config["max_position_embeddings"] + 2) * c if kind == "opt" else 0),
        head=c * v,
        tied=bool(config.get("tie_word_embeddings", kind == "opt")),
        layers=layers,
        score_flops=4 * h * d,
        cache=2 * g * d,
    )


def parameters(config: Config, skip: SkipSet = BASE) -> int:
    """Parameters that a variant still has; a tied head counts once."""
    s, kind = sizes(config), config.get("model_type")
    head = 0 if s.tied else s.head + (config["vocab_size"] if kind == "phi" else 0)
    rest = s.embedding + head + config["hidden_size"] * (2 if kind in _PLAIN else 1)
    return rest + (s.layers - len(skip.attention)) * s.attention + (s.layers - len(skip.mlp)) * s.mlp


def flops(config: Config, skip: SkipSet, new: int, past: int = 0, wanted: int = 1) -> int:
    """FLOPs of one sequence's forward pass: matrix products and attention scores; norms and activations are left out.

    Scores are counted whole (S · T), masked half included, which is what kernels without a causal shortcut compute.
    """
    s = sizes(config)
    attention = 2 * s.attention_products * new + s.score_flops * new * (past + new)
    products = (s.layers - len(skip.attention)) * attention + (
        s.layers - len(skip.mlp)
    ) * 2 * s.mlp_products * new
    return products + 2 * s.head * wanted


def cache_bytes(config: Config, skip: SkipSet, precision: str) -> int:
    """KV-cache bytes of one token of one sequence."""
    s = sizes(config)
    return (s.layers - len(skip.attention)) * s.cache * BYTES[precision]


def weight_bytes(config: Config, skip: SkipSet, precision: str) -> int:
    return parameters(config, skip) * BYTES[precision]


def streamed_bytes(config: Config, skip: SkipSet, precision: str, past: int, batch: int = 1) -> int:
    """Bytes that decoding one token reads: every weight but the embedding table's other rows, and the cache."""
    s = sizes(config)
    weights = parameters(config, skip) - (0 if s.tied else s.embedding)
    return weights * BYTES[precision] + batch * past * cache_bytes(config, skip, precision)


def ceiling(
    config: Config, skip: SkipSet, precision: str, length: int, decode: bool, batch: int = 1
) -> float:
    """The speed-up over base that the removed work allows: FLOPs in prefill, bytes in decoding one token.

    Below it lies what any kernel can reach that is bound by that work; a measured speed-up above it is a measurement bug.
    """
    if decode:
        streamed = [streamed_bytes(config, which, precision, length, batch) for which in (BASE, skip)]
        return streamed[0] / streamed[1]
    return flops(config, BASE, length) / flops(config, skip, length)
