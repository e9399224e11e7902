"""PyTorch (transformers) with a skip set applied by replacing modules: the ground truth, written without the graph code.

Legend: B batch, T tokens, V vocabulary, G key/value heads, D head dimension, C hidden size.

A skipped attention is a module that returns zeros and never sees the cache, a skipped MLP one that returns zeros:
x + 0 is x, bit for bit. Every pass is one whole forward without a past, so that a graph's cache is held against
recomputation and not against another cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel

from pipeline.types import BASE, Precision, SkipSet, Sublayer, UserError

Array = npt.NDArray[Any]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_ATTENTION = ("self_attn", "attention", "attn")
_MLP = ("mlp", "fc2")  # OPT has no MLP module: its last linear is where the MLP joins the stream


class _NoAttention(nn.Module):
    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)


class Reference:
    """A Hugging Face causal model with the sublayers of a skip set left out, on the CPU.

    Args:
        folder: config.json and safetensors; code that comes with a checkpoint is never run.
        skip: what is left out.
        dtype: 'fp32' or 'fp16', of weights and activations (transformers keeps norm statistics and angles in fp32).

    Raises:
        UserError: no checkpoint there, a layer does not exist, or a decoder layer is built in an unknown way.
    """

    def __init__(self, folder: Path, skip: SkipSet = BASE, dtype: Precision = "fp32") -> None:
        try:
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=_DTYPES[dtype], attn_implementation="eager", use_safetensors=True, local_files_only=True
            ).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{folder} holds no checkpoint that transformers can load ({reason}); check needs one to compare with"
            ) from None
        self.skip = skip
        self.layers = _decoder_layers(self.model, folder)
        skip.within(len(self.layers))
        for i, layer in enumerate(self.layers):
            if (i, "attn") in skip:
                setattr(layer, _child(layer, _ATTENTION, folder), _NoAttention())
            if (i, "mlp") in skip:
                setattr(layer, _child(layer, _MLP, folder), _NoMlp(self.model.config.hidden_size))

    def forward(
        self, input_ids: Array, attention_mask: Array, position_ids: Array
    ) -> tuple[Array, dict[int, tuple[Array, Array]]]:
        """One whole pass without a past; inputs [B, T] int64.

        Returns:
            logits [B, T, V] in the reference's dtype, and {layer: (keys, values)}, each [B, G, T, D], of the layers whose
            attention is there. What stands at padded positions means nothing: transformers masks padded queries otherwise.
        """
        cache = DynamicCache()  # without a config no layer crops its keys to a sliding window
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(np.ascontiguousarray(input_ids)),
                attention_mask=torch.from_numpy(np.ascontiguousarray(attention_mask)),
                position_ids=torch.from_numpy(np.ascontiguousarray(position_ids)),
                past_key_values=cache,
                use_cache=True,
            )
        cached = {}
        for i in (i for i in range(len(self.layers)) if (i, "attn") not in self.skip):
            keys, values = cache.layers[i].keys, cache.layers[i].values
            assert keys is not None and values is not None
            cached[i] = (keys.numpy(), values.numpy())
        return output.logits.numpy(), cached

    def residuals(self, input_ids: Array, attention_mask: Array, position_ids: Array) -> dict[Sublayer, Array]:
        """The residual stream [B, T, C] after every sublayer that is there, in order; inputs as `forward`.

        Where attention and MLP run in parallel, the attention counts as joining first.
        """
        return self.trace(input_ids, attention_mask, position_ids)[0]

    def trace(
        self, input_ids: Array, attention_mask: Array, position_ids: Array
    ) -> tuple[dict[Sublayer, Array], dict[Sublayer, Array], Array]:
        """(the stream after each sublayer, what each sublayer adds to it, the stream before layer 0), each [B, T, C]."""
        entering: dict[int, torch.Tensor] = {}
        leaving: dict[int, torch.Tensor] = {}
        branches: dict[Sublayer, torch.Tensor] = {}
        hooks = []
        for i, layer in enumerate(self.layers):
            hooks.append(layer.register_forward_pre_hook(_keep_input(entering, i), with_kwargs=True))
            hooks.append(layer.register_forward_hook(_keep_output(leaving, i)))
            parts: tuple[tuple[Sublayer, tuple[str, ...]], ...] = (((i, "attn"), _ATTENTION), ((i, "mlp"), _MLP))
            for part, names in parts:
                if part not in self.skip:
                    module = getattr(layer, _child(layer, names, Path(self.model.name_or_path)))
                    hooks.append(module.register_forward_hook(_keep_output(branches, part)))
        try:
            self.forward(input_ids, attention_mask, position_ids)
        finally:
            for hook in hooks:
                hook.remove()
        batch, tokens = input_ids.shape
        shaped = {part: branch.reshape(batch, tokens, -1) for part, branch in branches.items()}
        ordered: list[Sublayer] = [p for i in range(len(self.layers)) for p in ((i, "attn"), (i, "mlp")) if p in shaped]  # type: ignore[misc]
        streams = {p: (entering[p[0]] + shaped[p] if p[1] == "attn" else leaving[p[0]]).numpy() for p in ordered}
        return streams, {p: shaped[p].numpy() for p in ordered}, entering[0].numpy()

    def generate(self, prompt_ids: list[int] | Array, max_new_tokens: int) -> list[int]:
        """The greedy continuation of one prompt, new tokens only, ended by the model's end-of-text token.

        The checkpoint's own sampling settings (temperature, repetition penalty) are put aside. No cache is used:
        DynamicCache asks layer 0 for its length, and layer 0 may have no attention.
        """
        ids = torch.as_tensor(np.asarray(prompt_ids, np.int64)).reshape(1, -1)
        had = self.model.generation_config
        stop = had.eos_token_id
        self.model.generation_config = GenerationConfig(
            eos_token_id=stop,
            pad_token_id=had.pad_token_id if had.pad_token_id is not None else (stop[0] if isinstance(stop, list) else stop),
        )
        try:
            with torch.inference_mode():
                made = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, use_cache=False
                )
        finally:
            self.model.generation_config = had
        return [int(token) for token in made[0, ids.shape[1] :]]


def _decoder_layers(model: PreTrainedModel, folder: Path) -> nn.ModuleList:
    """The list of decoder layers: the outermost ModuleList with as many entries as the config has layers."""
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"{folder}: no list of {count} decoder layers in {type(model).__name__}; check cannot skip its sublayers")


def _child(layer: nn.Module, names: tuple[str, ...], folder: Path) -> str:
    """The name under which a decoder layer keeps a sublayer."""
    for name in names:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise UserError(f"{folder}: {type(layer).__name__} has none of {', '.join(names)}; check cannot skip its sublayers")


def _keep_input(into: dict[int, torch.Tensor], key: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into[key] = args[0] if args else kwargs["hidden_states"]

    return hook


def _keep_output(into: dict[Any, torch.Tensor], key: Any) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        into[key] = output if isinstance(output, torch.Tensor) else output[0]

    return hook
