"""PyTorch (transformers) with a skip set applied by replacing modules: the ground truth, written without the graph code.

Legend: B batch, T tokens, V vocabulary, G key/value heads, D head dimension, C hidden size.

A skipped attention is a module that returns zeros and never sees the cache, a skipped MLP one that returns zeros:
x + 0 is x, bit for bit. Every pass is one whole forward without a past, so that a graph's cache is held against
recomputation and not against another cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedModel

from pipeline.types import BASE, Precision, SkipSet, Sublayer, UserError

Array = npt.NDArray[Any]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
FAST = {"attn_implementation": "sdpa"}
"""For what runs long and is compared with itself: PyTorch's fused attention, a sixth faster on a CPU than the plain one."""
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
        healed: safetensors whose tensors take the place of the checkpoint's (`adapters.merge`).
        load: further arguments of from_pretrained (another attention kernel, quantisation).

    Raises:
        UserError: no checkpoint there, a layer does not exist, or a decoder layer is built in an unknown way.
    """

    def __init__(
        self,
        folder: Path,
        skip: SkipSet = BASE,
        dtype: Precision = "fp32",
        healed: Path | None = None,
        load: dict[str, Any] | None = None,
    ) -> None:
        try:
            settings = {"attn_implementation": "eager", "dtype": _DTYPES[dtype], **(load or {})}
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, **settings
            ).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{folder} holds no checkpoint that transformers can load ({reason}); check needs one to compare with"
            ) from None
        self.skip = skip
        self.layers = _decoder_layers(self.model, folder)
        self.gives_tuples = (
            False  # whether a layer gives (stream, …) or the stream itself; seen by `entering`
        )
        skip.within(len(self.layers))
        if healed is not None:
            self.model.load_state_dict(load_file(healed), strict=False)
        self._leave_out(skip)

    def _leave_out(self, skip: SkipSet) -> list[tuple[nn.Module, str, nn.Module]]:
        """Replaces the sublayers; gives (layer, name, what was there)."""
        folder, had = Path(self.model.name_or_path), []
        for i, layer in enumerate(self.layers):
            for part, names in _parts(i):
                if part in skip:
                    name = _child(layer, names, folder)
                    had.append((layer, name, getattr(layer, name)))
                    setattr(
                        layer,
                        name,
                        _NoAttention() if part[1] == "attn" else _NoMlp(self.model.config.hidden_size),
                    )
        return had

    @contextmanager
    def without(self, skip: SkipSet) -> Iterator[None]:
        """Leaves further sublayers out for a while."""
        had = self._leave_out(skip)
        try:
            yield
        finally:
            for layer, name, module in had:
                setattr(layer, name, module)

    @contextmanager
    def entering(self) -> Iterator[dict[int, torch.Tensor]]:
        """Keeps the residual stream [B, T, C] before each layer of the passes made meanwhile: layer → stream."""
        found: dict[int, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(_keep_input(found, i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        hooks.append(self.layers[0].register_forward_hook(self._see_form))
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def leaving(self, layers: list[int]) -> Iterator[dict[int, torch.Tensor]]:
        """Keeps the residual stream [B, T, C] after these layers of the passes made meanwhile: layer → stream."""
        found: dict[int, torch.Tensor] = {}
        hooks = [self.layers[i].register_forward_hook(_keep_output(found, i)) for i in layers]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def sublayers(self) -> dict[Sublayer, nn.Module]:
        """(layer, kind) → its module, of those that are there."""
        folder = Path(self.model.name_or_path)
        found: dict[Sublayer, nn.Module] = {}
        for i, layer in enumerate(self.layers):
            for part, names in _parts(i):
                if part not in self.skip:
                    found[part] = getattr(layer, _child(layer, names, folder))
        return found

    def _see_form(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.gives_tuples = isinstance(output, tuple)

    @contextmanager
    def taken_up(self, first: int, stream: torch.Tensor | None) -> Iterator[None]:
        """Passes made meanwhile begin before layer `first` with a stream [B, T, C] that `entering` kept; the layers below do nothing."""
        given = (stream,) if self.gives_tuples else stream
        for layer in self.layers[:first]:
            layer.forward = lambda *_args, **_kwargs: given
        try:
            yield
        finally:
            for layer in self.layers[:first]:
                del layer.forward

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

    def residuals(
        self, input_ids: Array, attention_mask: Array, position_ids: Array
    ) -> dict[Sublayer, Array]:
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
        for part, module in self.sublayers().items():
            hooks.append(module.register_forward_hook(_keep_output(branches, part)))
        try:
            self.forward(input_ids, attention_mask, position_ids)
        finally:
            for hook in hooks:
                hook.remove()
        batch, tokens = input_ids.shape
        shaped = {part: branch.reshape(batch, tokens, -1) for part, branch in branches.items()}
        ordered: list[Sublayer] = [
            p for i in range(len(self.layers)) for p in ((i, "attn"), (i, "mlp")) if p in shaped
        ]  # type: ignore[misc]
        streams = {
            p: (entering[p[0]] + shaped[p] if p[1] == "attn" else leaving[p[0]]).numpy() for p in ordered
        }
        return streams, {p: shaped[p].numpy() for p in ordered}, entering[0].numpy()

    def logits_at(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[B, K, V]: the logits at K positions [K] of a pass without a cache, and no others where the model can leave them out."""
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return self.model(input_ids=input_ids, use_cache=False, logits_to_keep=positions).logits
        return self.model(input_ids=input_ids, use_cache=False).logits[:, positions]

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
            pad_token_id=had.pad_token_id
            if had.pad_token_id is not None
            else (stop[0] if isinstance(stop, list) else stop),
        )
        try:
            with torch.inference_mode():
                made = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    use_cache=False,
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
    raise UserError(
        f"{folder}: no list of {count} decoder layers in {type(model).__name__}; check cannot skip its sublayers"
    )


def _parts(layer: int) -> tuple[tuple[Sublayer, tuple[str, ...]], ...]:
    """A layer's sublayers and the names that their modules go by."""
    return ((layer, "attn"), _ATTENTION), ((layer, "mlp"), _MLP)


def _child(layer: nn.Module, names: tuple[str, ...], folder: Path) -> str:
    """The name under which a decoder layer keeps a sublayer."""
    for name in names:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise UserError(
        f"{folder}: {type(layer).__name__} has none of {', '.join(names)}; check cannot skip its sublayers"
    )


def _keep_input(into: dict[int, torch.Tensor], key: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into[key] = args[0] if args else kwargs["hidden_states"]

    return hook


def _keep_output(into: dict[Any, torch.Tensor], key: Any) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        into[key] = output if isinstance(output, torch.Tensor) else output[0]

    return hook
