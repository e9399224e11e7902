"""The first Qwen in PyTorch, after its published `modeling_qwen.py` (report: Bai et al. 2023, section 2.3).

transformers has no class of it, and code that lies beside weights is not run here. Importing this module
makes `AutoConfig` and `AutoModelForCausalLM` of transformers know the classes below. Attention is that of
texts up to `seq_length`; longer ones, which the published code treats otherwise, are refused.

Legend: B batch, S new tokens, P cached tokens, T = P + S, H heads, D head dimension, R rotated part of it, C
hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from pipeline.models.config import qwen
from pipeline.types import UserError

_Config: Any = PretrainedConfig  # what is typed of these differs between versions
_Pretrained: Any = PreTrainedModel
_Generation: Any = GenerationMixin
_Stream: Any = BaseModelOutputWithPast
_Logits: Any = CausalLMOutputWithPast
_PUBLISHED = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 22016,
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "use_cache": True,
    "kv_channels": 128,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "tie_word_embeddings": False,
}
"""The published class's defaults, of what is read here."""


class QwenConfig(_Config):
    """The published configuration class, by its names."""

    model_type = "qwen"

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**_PUBLISHED, **given})


class _RmsNorm(nn.Module):
    """x / rms(x) · weight, with FP32 statistics (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        scaled: torch.Tensor = normed.to(x.dtype) * self.weight
        return scaled


class _Rotary(nn.Module):
    """Cosines and sines of positions times inverse frequencies (Su et al. 2021, section 3.2.2), in FP32."""

    inv_freq: torch.Tensor
    attention_scaling = 1.0

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.rotated, self.base = int(config.kv_channels * config.rotary_pct), config.rotary_emb_base
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> torch.Tensor:
        """[R/2]."""
        exponents = torch.arange(0, self.rotated, 2, dtype=torch.float32) / self.rotated
        frequencies: torch.Tensor = 1.0 / self.base**exponents
        return frequencies

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S] → two [B, 1, S, R]."""
        angles = positions[:, None, :, None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] with its first R numbers turned in pairs (j, j + R/2); in FP32."""
    turned, rest = torch.tensor_split(x.float(), [cosines.shape[-1]], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosines + torch.cat([-second, first], dim=-1) * sines
    return torch.cat([turned, rest], dim=-1).to(x.dtype)


class _Attention(nn.Module):
    """Softmax attention; q, k and v come from one matrix with a bias, the output has none."""

    def __init__(self, config: QwenConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.width = layer, config.num_attention_heads, config.kv_channels
        inner = self.heads * self.width
        self.c_attn = nn.Linear(config.hidden_size, 3 * inner)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, None]:
        """[B, S, C] under a mask [B, 1, S, T] → [B, S, C]; as transformers, with no attention weights."""
        batch, tokens, _ = hidden_states.shape
        q, k, v = (
            part.reshape(batch, tokens, self.heads, self.width).transpose(1, 2)
            for part in self.c_attn(hidden_states).chunk(3, dim=-1)
        )
        q, k = _rotate(q, *angles), _rotate(k, *angles)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)), None


class _Mlp(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6): c_proj(w1(x) · silu(w2(x)))."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        inner = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, inner, bias=False)
        self.w2 = nn.Linear(config.hidden_size, inner, bias=False)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        product = self.w1(hidden_states) * functional.silu(self.w2(hidden_states))
        output: torch.Tensor = self.c_proj(product)
        return output


class _Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: QwenConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = _RmsNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = _Attention(config, layer)
        self.ln_2 = _RmsNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = _Mlp(config)

    def forward(self, hidden_states: torch.Tensor, *context: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states), *context)[0]
        output: torch.Tensor = hidden_states + self.mlp(self.ln_2(hidden_states))
        return output


class _QwenBase(_Pretrained):
    """What transformers asks of both models."""

    config_class = QwenConfig
    base_model_prefix = "transformer"
    _supports_sdpa = True
    _input_embed_layer = "wte"
    _no_split_modules: ClassVar = ["_Layer"]

    def _init_weights(self, module: nn.Module) -> None:
        """As published: normal matrices, norms of one, biases of nought."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, _RmsNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, _Rotary):  # transformers 5 builds a model without the values of its buffers
            module.inv_freq.copy_(module.frequencies())


class QwenModel(_QwenBase):
    """Embedding, layers and the last norm."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = _Rotary(config)
        self.h = nn.ModuleList(_Layer(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = _RmsNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_others: Any,
    ) -> Any:
        """The stream [B, S, C] behind the last norm.

        Args:
            input_ids: [B, S].
            attention_mask: [B, T]; 0 is padding. By default there is none. A whole one [B, 1, S, T], as other
                models take it, is added to the scores, or says what is seen where it is of booleans.
            position_ids: [B, S]; by default P, P + 1, …
            past_key_values: of the P tokens before.
            use_cache: whether keys and values are kept.

        Raises:
            UserError: a position beyond those for which attention is plain.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        tokens = input_ids.shape[1]
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        total = attention_mask.shape[-1] if attention_mask is not None else past + tokens
        queries = torch.arange(total - tokens, total, device=input_ids.device)
        positions = queries[None] if position_ids is None else position_ids
        _refuse_long(self.config, positions)
        stream = self.wte(input_ids)
        context = self.rotary_emb(positions), _mask(queries, total, attention_mask), past_key_values
        for layer in self.h:
            stream = layer(stream, *context)
        return _Stream(last_hidden_state=self.ln_f(stream), past_key_values=past_key_values)


def _refuse_long(config: QwenConfig, positions: torch.Tensor) -> None:
    most = qwen.context({"seq_length": None, **vars(config)})
    if int(positions.max()) >= most:
        raise UserError(
            f"the text has more than the {most} tokens (seq_length) up to which Qwen's attention is plain; "
            "beyond them it is not authored here"
        )


def _mask(queries: torch.Tensor, total: int, padding: torch.Tensor | None) -> torch.Tensor:
    """The bool mask [B, 1, S, T]: causal, without padding, each query itself kept; a whole one as it is."""
    keys = torch.arange(total, device=queries.device)
    mask = (keys <= queries[:, None])[None, None]
    if padding is None:
        return mask
    if padding.ndim == 4:
        return padding
    return mask & (padding[:, None, None, :].bool() | (keys == queries[:, None]))


class QwenForCausalLM(_QwenBase, _Generation):
    """The decoder with its head."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.transformer = QwenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int | torch.Tensor = 0, **context: Any) -> Any:
        """Logits [B, K, V] at the last `logits_to_keep` tokens, or at those positions; 0 is all of them.

        Args:
            input_ids: [B, S].
            logits_to_keep: K, or the K positions.
            context: of `QwenModel.forward`.
        """
        output = self.transformer(input_ids, **context)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        return _Logits(logits=logits, past_key_values=output.past_key_values)


AutoConfig.register(QwenConfig.model_type, QwenConfig)
AutoModelForCausalLM.register(QwenConfig, QwenForCausalLM)
