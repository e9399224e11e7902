"""transformers' cache of keys and values, where some layers have no attention; and text without a cache.

Legend: B batch, G key/value heads, T cached tokens, D head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig

Array = npt.NDArray[np.floating]


def argument(model: nn.Module) -> str:
    """The name under which a model's forward takes a cache: another in transformers 5.24 than before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def with_gap(cache: DynamicCache, layers: int, there: list[int], gap: int) -> DynamicCache:
    """A cache with so many places of zeros at its end; layers without attention, too, get that length.

    transformers asks layer 0 for the length, and layer 0 may have no attention.

    Args:
        cache: of a pass.
        layers: L.
        there: the layers with attention.
        gap: places.
    """
    longer = DynamicCache()
    for i in range(layers) if there else ():
        layer: Any = cache.layers[i if i in there else there[0]]
        keys, values = (functional.pad(part, (0, 0, 0, gap)) for part in (layer.keys, layer.values))
        longer.update(keys, values, i)
    return longer


def arrays(cache: DynamicCache, there: list[int]) -> dict[int, tuple[Array, Array]]:
    """Layer → (keys, values), each [B, G, T, D], of the layers with attention."""
    kept = {}
    for i in there:
        layer: Any = cache.layers[i]
        kept[i] = (array(layer.keys), array(layer.values))
    return kept


def on_host(tensors: Mapping[Any, torch.Tensor]) -> dict[Any, Array]:
    """Each of them as `array`."""
    return {key: array(tensor) for key, tensor in tensors.items()}


def array(tensor: torch.Tensor) -> Array:
    """On the host, for numpy, which has no bfloat16: fp32 then."""
    whole = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    values: Array = whole.cpu().numpy()
    return values


def greedy(model: Any, prompt_ids: list[int] | npt.NDArray[Any], max_new_tokens: int) -> list[int]:
    """The greedy continuation of one prompt, new tokens only, ended by the model's end-of-text token.

    The checkpoint's own sampling settings (temperature, repetition penalty) are put aside. No cache is used:
    DynamicCache asks layer 0 for its length, and layer 0 may have no attention.
    """
    ids = torch.as_tensor(np.asarray(prompt_ids, np.int64)).reshape(1, -1).to(model.device)
    published = model.generation_config
    stop, padding = published.eos_token_id, published.pad_token_id
    if padding is None:
        padding = stop[0] if isinstance(stop, list) else stop
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=stop, pad_token_id=padding
    )
    try:
        with torch.inference_mode():
            tokens = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=False,
            )
    finally:
        model.generation_config = published
    return [int(token) for token in tokens[0, ids.shape[1] :]]
