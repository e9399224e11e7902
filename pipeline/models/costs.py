"""What a variant costs, from config.json and the skip set: parameters, FLOPs, bytes, the speed-up's ceiling.

Legend: S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, H query heads, G
key/value heads, D head dimension, C hidden size, F feed-forward size, V vocabulary. A multiply-add counts as
two FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.models.compensation import NO_MAPS, MapSizes
from pipeline.models.config import Config
from pipeline.models.quantisation.names import Quantisation, is_in_blocks
from pipeline.models.sizes import SizeRules, rules_of
from pipeline.types import BASE, SkipSet, UserError

BYTES = {"fp32": 4, "fp16": 2}
"""Of a number."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of a model's parts, as numbers.

    Attributes:
        attention, mlp: of one sublayer.
        attention_products, mlp_products: of those, the weights of matrix products.
        value_products: of those, the weights that make values, where they are a matrix of their own; else 0.
        embedding: of the tables of tokens and of learned positions.
        head: of the head's matrix; head_bias: of its bias.
        final_norm: of the norm before the head.
        tied: the head is the embedding.
        layers: L.
        score_flops: 4 · H · D: FLOPs of one attention for a query and a key.
        cache: 2 · G · D: numbers that one attention keeps of a token.
    """

    attention: int
    attention_products: int
    value_products: int
    mlp: int
    mlp_products: int
    embedding: int
    head: int
    head_bias: int
    final_norm: int
    tied: bool
    layers: int
    score_flops: int
    cache: int


def sizes(config: Config) -> Sizes:
    """The sizes that a config.json implies.

    Raises:
        UserError: the config names its sizes otherwise than Llama's does (GPT-2's n_embd, say).
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
    rules = rules_of(config.get("model_type"))
    f = f // 2 if rules.halved_mlp else f
    norm = 2 * c if rules.layer_norms else c
    attention = c * d * (h + 2 * g) + h * d * c
    mlp = (3 if rules.gated_mlp else 2) * c * f
    has_positions = rules.learned_positions is not None
    positions = config["max_position_embeddings"] + rules.learned_positions if has_positions else 0
    return Sizes(
        attention=attention
        + _count(rules.attention_norms) * norm
        + _head_norms(rules, h, g, d)
        + _attention_biases(config, rules, d * (h + 2 * g), c),
        attention_products=attention,
        value_products=0 if rules.values is None else c * g * d,
        mlp=mlp + _count(rules.mlp_norms) * norm + _mlp_biases(config, rules, f, c),
        mlp_products=mlp,
        embedding=(v + positions) * c,
        head=c * v,
        head_bias=v if rules.head_bias else 0,
        final_norm=norm,
        tied=bool(config.get("tie_word_embeddings", rules.tied)),
        layers=layers,
        score_flops=4 * h * d,
        cache=2 * g * d,
    )


def _count(norms: tuple[str | None, str | None]) -> int:
    return sum(name is not None for name in norms)


def _head_norms(rules: SizeRules, h: int, g: int, d: int) -> int:
    """Norms of queries and keys, of each head or of all of them."""
    return 2 * d * rules.head_norms + d * (h + g) * rules.projection_norms


def _attention_biases(config: Config, rules: SizeRules, qkv: int, c: int) -> int:
    """Biases of the attention's matrices, which have `qkv` and `c` outputs."""
    biases = (
        bool(config.get("attention_bias")) if rule is None else rule
        for rule in (rules.qkv_bias, rules.output_bias)
    )
    qkv_bias, output_bias = biases
    return qkv * qkv_bias + c * output_bias


def _mlp_biases(config: Config, rules: SizeRules, f: int, c: int) -> int:
    has_bias = bool(config.get("mlp_bias")) if rules.mlp_bias is None else rules.mlp_bias
    return ((2 if rules.gated_mlp else 1) * f + c) * has_bias


def parameters(config: Config, skip: SkipSet = BASE, maps: MapSizes = NO_MAPS) -> int:
    """Parameters that a variant has, those of its compensation included; a tied head counts once."""
    s = sizes(config)
    fixed = s.embedding + (0 if s.tied else s.head) + s.head_bias + s.final_norm
    kept = (s.layers - len(skip.attention)) * s.attention + (s.layers - len(skip.mlp)) * s.mlp
    return fixed + kept + maps.parameters


def flops(
    config: Config,
    skip: SkipSet,
    new: int,
    past: int = 0,
    wanted: int = 1,
    maps: MapSizes = NO_MAPS,
) -> int:
    """FLOPs of one sequence's forward pass, of matrix products and attention scores alone.

    Scores are counted whole (S · T), masked half included, which is what kernels without a causal shortcut
    compute.

    Args:
        config: of the model.
        skip: what is left out.
        new: S.
        past: P.
        wanted: K.
        maps: of its compensation.
    """
    s = sizes(config)
    attention = 2 * s.attention_products * new + s.score_flops * new * (past + new)
    mlp = 2 * s.mlp_products * new
    layers = (s.layers - len(skip.attention)) * attention + (s.layers - len(skip.mlp)) * mlp
    return layers + 2 * maps.products * new + 2 * s.head * wanted


def cache_bytes(config: Config, skip: SkipSet, precision: str) -> int:
    """KV-cache bytes of one token of one sequence, at a precision as `weight_bytes` takes it."""
    s = sizes(config)
    return (s.layers - len(skip.attention)) * s.cache * number_bytes(precision)


def number_bytes(precision: str) -> int:
    """Bytes of a number of the activations: of 'int4-fp32' those of fp32."""
    return BYTES[precision.rpartition("-")[2]]


def weight_bytes(config: Config, skip: SkipSet, precision: str, maps: MapSizes = NO_MAPS) -> int:
    """Bytes of a variant's weights.

    Args:
        config: of the model.
        skip: what is left out.
        precision: 'fp32', 'fp16', or 'int4-fp32': of the weights of products, and of all others.
        maps: of its compensation.
    """
    saved, head = _quantised(config, skip, precision)
    return parameters(config, skip, maps) * number_bytes(precision) - saved + head


def _quantised(config: Config, skip: SkipSet, precision: str) -> tuple[int, int]:
    """Bytes that quantised products lack, and those of a tied head's copy; nought where there is none."""
    name, _, activations = precision.rpartition("-")
    if not name:
        return 0, 0
    s, form, number = sizes(config), Quantisation.parse(name), number_bytes(precision)
    attentions = s.layers - len(skip.attention)
    values = attentions * s.value_products
    others = attentions * (s.attention_products - s.value_products)
    others += (s.layers - len(skip.mlp)) * s.mlp_products
    saved = others * number - form.nbytes(others, form.bits)
    if is_in_blocks(form.value_bits, form.bits, activations):
        saved += values * number - form.nbytes(values, form.value_bits)
    if not is_head_in_blocks(precision):
        return saved, 0
    head = form.nbytes(s.head, form.head_bits)
    return (saved, head) if s.tied else (saved + s.head * number - head, 0)


def is_head_in_blocks(precision: str) -> bool:
    """Whether the head is quantised, and so no embedding, at a precision as `weight_bytes` takes it."""
    name, _, activations = precision.rpartition("-")
    if not name:
        return False
    form = Quantisation.parse(name)
    return is_in_blocks(form.head_bits, form.bits, activations)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is computed.

    Attributes:
        length: S of a prefill, or P of decoding one token.
        decode: whether one further token is decoded on a cache.
        batch: sequences at once, which share the weights.
    """

    length: int
    decode: bool = False
    batch: int = 1


def streamed_bytes(
    config: Config, skip: SkipSet, precision: str, work: Workload, maps: MapSizes = NO_MAPS
) -> int:
    """Bytes of weights and cache that a pass moves: every weight but the embedding table's other rows, once.

    Decoding one token reads the whole cache; a prefill writes as much as it has tokens.

    Args:
        config: of the model.
        skip: what is left out.
        precision: of weights and cache, as `weight_bytes` takes it.
        work: tokens of the cache, and sequences.
        maps: of its compensation.
    """
    s = sizes(config)
    is_read = s.tied and not is_head_in_blocks(precision)
    unread = 0 if is_read else s.embedding * number_bytes(precision)
    cache = work.batch * work.length * cache_bytes(config, skip, precision)
    return weight_bytes(config, skip, precision, maps) - unread + cache


def ceiling(config: Config, skip: SkipSet, precision: str, work: Workload, maps: MapSizes = NO_MAPS) -> float:
    """The speed-up over base that the removed work allows: FLOPs in prefill, bytes in decoding one token.

    No kernel that is bound by that work can be faster; a measured speed-up above it is a bug in the
    measurement.

    Args:
        config: of the model.
        skip: what is left out.
        precision: of weights and cache.
        work: what is computed.
        maps: of the variant's compensation, whose work is added.
    """
    if work.decode:
        return byte_ceiling(config, skip, precision, work, maps)
    return flops(config, BASE, work.length) / flops(config, skip, work.length, maps=maps)


def byte_ceiling(
    config: Config, skip: SkipSet, precision: str, work: Workload, maps: MapSizes = NO_MAPS
) -> float:
    """The speed-up over base that the removed bytes allow: of a prefill too, where bytes bind it.

    Args:
        config: of the model.
        skip: what is left out.
        precision: of weights and cache.
        work: what is computed.
        maps: of the variant's compensation, whose bytes are added.
    """
    base = streamed_bytes(config, BASE, precision, work)
    return base / streamed_bytes(config, skip, precision, work, maps)
