"""PyTorch (transformers) with sublayers left out by replacing modules: the ground truth.

Legend: B batch, T tokens, K wanted positions, V vocabulary, G key/value heads, D head dimension, C hidden
size.

A skipped sublayer is a module that returns zeros (x + 0 is x, bit for bit), or what its compensation gives.
Every pass is one whole forward without a past, so that a graph's cache is compared with recomputation and not
with another cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import DynamicCache

from pipeline.models import caches, compensation, devices, pretrained, sublayers
from pipeline.models.compensation import MapParts, MapPlace
from pipeline.models.quantisation import modules
from pipeline.models.quantisation.modules import Overlay
from pipeline.models.sizes import rules_of
from pipeline.models.sublayers import keep_input, keep_output, removed_after
from pipeline.types import BASE, Provider, SkipSet, Sublayer, UserError

Array = npt.NDArray[Any]
Dtype = Literal["fp32", "fp16", "bf16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAST = {"attn_implementation": "sdpa"}
"""For long runs that are compared with themselves: PyTorch's fused attention, a sixth faster on a CPU."""


class Reference:
    """A Hugging Face causal model with the sublayers of a skip set left out.

    Args:
        folder: config.json and safetensors; code that comes with a checkpoint is never run.
        skip: what is left out.
        dtype: of weights and activations (transformers keeps norm statistics and angles in fp32).
        overlays: safetensors whose tensors take the place of the checkpoint's (`adapters.merge`,
            `models/quantisation`), or whose maps stand in for skipped sublayers (`models/compensation.py`);
            of two files the later counts.
        load: further arguments of from_pretrained (another attention kernel, quantisation).
        device: that it computes on; what it gives as arrays is on the host, and in fp32 where it is bf16.

    Attributes:
        device: as it was given.
        model: transformers' model.
        layers: its decoder layers.
        skip: what is left out for good; `without` leaves out more for a while.

    Raises:
        UserError: as `pretrained.load`, `devices.require_room`; a layer does not exist, or is built in an
            unknown way; overlays' tensors are not this model's, or a map stands where nothing is skipped.
    """

    def __init__(
        self,
        folder: Path,
        skip: SkipSet = BASE,
        dtype: Dtype = "fp32",
        overlays: Sequence[Overlay] = (),
        load: dict[str, Any] | None = None,
        device: Provider = "cpu",
    ) -> None:
        devices.require_room(device, folder, skip, None if "quantization_config" in (load or {}) else dtype)
        self.device = device
        options = {"attn_implementation": "eager", "dtype": _DTYPES[dtype]}
        self.model: Any = pretrained.load(folder, skip, **options | (load or {}))
        if device != "cpu" and "device_map" not in (load or {}):  # 4-bit weights are there already
            self.model.to(device)
        self.skip = skip
        self._rules = rules_of(self.model.config.model_type)
        self.layers = sublayers.decoder_layers(self.model, folder)
        # Whether a layer returns (stream, …) or the stream itself; `entering` finds out.
        self._gives_tuples = False
        skip.within(len(self.layers))
        self._leave_out(skip)
        for file in overlays:
            self._overlay(file)

    def _overlay(self, file: Overlay) -> None:
        """Puts a file's weights and maps in the place of the checkpoint's and of skipped sublayers."""
        if modules.dequantised(self.model, file, self.skip) or not isinstance(file, Path):
            return
        weights, maps = compensation.read(file, self.skip)
        if foreign := self.model.load_state_dict(weights, strict=False).unexpected_keys:
            raise UserError(f"{file} holds {foreign[0]}, which {self.model.name_or_path} has not")
        for place, (factors, bias) in maps.items():
            compensation.refuse_width(place, bias, self.model.config.hidden_size, file)
            self.stand_in(place, factors, bias)

    def stand_in(self, place: MapPlace, factors: Sequence[torch.Tensor], bias: torch.Tensor) -> None:
        """Puts a map in the place of sublayers that are skipped; one that stood there is replaced.

        Args:
            place: where.
            factors: none, [C, C], or [C, R] and [R, C].
            bias: [C].
        """
        layer = self.layers[place.first]
        *parts, bias = (part.to(self.model.device, self.model.dtype) for part in (*factors, bias))
        if place.kind == "block":
            sublayers.map_run(layer, parts, bias)
            return
        name = next(n for one, _, n in self._places() if one == place.sublayers[0])
        scale = getattr(layer, "residual_multiplier", 1)  # Granite multiplies what a sublayer gives
        setattr(layer, name, sublayers.mapped(getattr(layer, name), parts, bias, scale))
        if after := self._rules.norms(place.kind)[1]:  # type: ignore[arg-type]
            setattr(layer, after, nn.Identity())

    def _leave_out(self, skip: SkipSet) -> None:
        """Replaces the sublayers."""
        for (index, kind), layer, name in self._places():
            if (index, kind) in skip:
                nothing = sublayers.nothing(getattr(layer, name), kind, self.model.config.hidden_size)
                setattr(layer, name, nothing)

    def _places(self) -> Iterator[tuple[Sublayer, nn.Module, str]]:
        """Each sublayer, its decoder layer, and its name there."""
        folder = Path(self.model.name_or_path)
        for i, layer in enumerate(self.layers):
            for sublayer, names in sublayers.of_layer(i):
                yield sublayer, layer, sublayers.module_name(layer, names, folder)

    @contextmanager
    def without(self, skip: SkipSet, maps: Mapping[MapPlace, MapParts] | None = None) -> Iterator[None]:
        """Leaves further sublayers out for a while; maps, as `stand_in` takes them, come in their stead."""
        with sublayers.restored(self.layers):
            self._leave_out(skip)
            for place, (factors, bias) in (maps or {}).items():
                self.stand_in(place, factors, bias)
            yield

    @contextmanager
    def entering(self) -> Iterator[dict[int, torch.Tensor]]:
        """Keeps the residual stream [B, T, C] before each layer, of the passes made meanwhile."""
        kept: dict[int, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(keep_input(kept, i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        with removed_after([*hooks, self.layers[0].register_forward_hook(self._see_form)]):
            yield kept

    @contextmanager
    def leaving(self, layers: list[int]) -> Iterator[dict[int, torch.Tensor]]:
        """Keeps the residual stream [B, T, C] after these layers, of the passes made meanwhile."""
        kept: dict[int, torch.Tensor] = {}
        with removed_after([self.layers[i].register_forward_hook(keep_output(kept, i)) for i in layers]):
            yield kept

    def sublayers(self) -> dict[Sublayer, nn.Module]:
        """(layer, kind) → its module, of those that are there."""
        places = self._places()
        return {one: getattr(layer, name) for one, layer, name in places if one not in self.skip}

    def _see_form(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._gives_tuples = isinstance(output, tuple)

    @contextmanager
    def taken_up(self, first: int, stream: torch.Tensor | None) -> Iterator[None]:
        """Lets the passes made meanwhile begin before a layer; the layers below it do nothing.

        Args:
            first: the layer; 0 for whole passes.
            stream: [B, T, C], what `entering` kept before it.
        """
        output = (stream,) if self._gives_tuples else stream
        before = [vars(layer).pop("forward", None) for layer in self.layers[:first]]
        for layer in self.layers[:first]:
            layer.forward = lambda *_args, **_kwargs: output
        try:
            yield
        finally:
            for layer, forward in zip(self.layers[:first], before, strict=True):
                del layer.forward
                if forward is not None:  # that of a wider `taken_up`, or of accelerate
                    layer.forward = forward

    def forward(
        self,
        input_ids: Array,
        attention_mask: Array,
        position_ids: Array,
        prompt: int = 0,
        columns: Sequence[int] | None = None,
    ) -> tuple[Array, dict[int, tuple[Array, Array]]]:
        """One whole pass without a past; inputs [B, T] int64.

        Args:
            input_ids: token ids.
            attention_mask: 0 is padding. Where it is longer than T, so many places after the prompt are in
                the cache alone: the rest is computed in a second pass, on the prompt's cache with a gap.
            position_ids: positions.
            prompt: tokens before the gap, where there is one.
            columns: the K positions whose logits are wanted, ascending; all T by default.

        Returns:
            logits [B, K, V] in the reference's dtype, and {layer: (keys, values)}, each [B, G, T, D], of the
            layers whose attention is there. At padded positions the numbers mean nothing: transformers masks
            padded queries in another way than graphs do.
        """
        ids, mask, positions = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)
            for array in (input_ids, attention_mask, position_ids)
        )
        gap = mask.shape[1] - ids.shape[1]
        end = prompt if gap else ids.shape[1]
        there = [i for i in range(len(self.layers)) if (i, "attn") not in self.skip]
        wanted = torch.arange(ids.shape[1]) if columns is None else torch.tensor(columns, dtype=torch.int64)
        with torch.inference_mode():
            first = {"attention_mask": mask[:, :end], "position_ids": positions[:, :end]}
            logits, cache = self._pass(ids[:, :end], DynamicCache(), wanted[wanted < end], **first)
            if gap:
                rest = {"attention_mask": mask, "position_ids": positions[:, end:]}
                cache = caches.with_gap(cache, len(self.layers), there, gap)
                more, cache = self._pass(ids[:, end:], cache, wanted[wanted >= end] - end, **rest)
                logits = torch.cat([logits, more], dim=1)
        return caches.array(logits), caches.arrays(cache, there)

    def _pass(
        self, ids: torch.Tensor, cache: DynamicCache | None, columns: torch.Tensor, **inputs: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """(logits at the columns, cache) of one pass.

        A cache made without a config crops no key to a sliding window. The head is computed at no other
        positions where the model can leave them out.
        """
        ids, columns = ids.to(self.model.device), columns.to(self.model.device)
        options = {caches.argument(self.model): cache, "use_cache": cache is not None, **inputs}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            logits = self.model(input_ids=ids, logits_to_keep=columns, **options).logits
        else:
            logits = self.model(input_ids=ids, **options).logits[:, columns]
        return logits, cache

    def trace(
        self, input_ids: Array, attention_mask: Array, position_ids: Array
    ) -> tuple[dict[Sublayer, Array], dict[Sublayer, Array], Array]:
        """What happens to the residual stream; inputs as `forward`.

        Returns:
            The stream after each sublayer that is there, or that a map stands in for, in order, and after the
            map of a run under the MLP of its first layer; what each adds to it; and the stream before layer 0
            and its map; each [B, T, C]. Of a parallel layer the attention counts as joining first.
        """
        everything, raw = list(range(len(self.layers))), sublayers.raw_input(self.layers[0])
        seen = (self.adding(), self.entering(), self.leaving(everything))
        with seen[0] as adding, seen[1] as entering, seen[2] as leaving, raw as first:
            self.forward(input_ids, attention_mask, position_ids, columns=())
        batch, tokens = input_ids.shape
        places = [sublayer for sublayer, _, _ in self._places() if sublayer in adding]
        scaled = {sublayer: adding[sublayer].reshape(batch, tokens, -1) for sublayer in places}
        if self.model.dtype == torch.float32:  # fp16 is too coarse to tell
            sublayers.refuse_unexplained(entering, scaled, leaving)
        added, before, after = (caches.on_host(kept) for kept in (scaled, entering, leaving))
        streams = {
            (layer, kind): before[layer] + branch if kind == "attn" else after[layer]
            for (layer, kind), branch in added.items()
        }
        runs = (i for i in leaving if sublayers.has_run_map(self.layers[i]))
        return streams | {(i, "mlp"): after[i] for i in runs}, added, caches.array(first[0])

    @contextmanager
    def adding(self, wanted: Collection[Sublayer] | None = None) -> Iterator[dict[Sublayer, torch.Tensor]]:
        """Keeps what sublayers add to the stream, of the passes made meanwhile.

        Args:
            wanted: of which; by default of all that are there, and of the maps that stand in for others.
        """
        kept: dict[Sublayer, torch.Tensor] = {}
        hooks = []
        for (i, kind), layer, name in self._places():
            is_there = (i, kind) not in self.skip or sublayers.is_mapped(getattr(layer, name))
            if is_there and (wanted is None or (i, kind) in wanted):
                hook = keep_output(kept, (i, kind), getattr(layer, "residual_multiplier", 1))
                hooks.append(getattr(layer, self._rules.norms(kind)[1] or name).register_forward_hook(hook))
        with removed_after(hooks):
            yield kept

    def logits_at(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[B, K, V]: the logits at K positions of a pass without a cache.

        Args:
            input_ids: [B, T].
            positions: [K].
        """
        return self._pass(input_ids, None, positions)[0]

    def generate(self, prompt_ids: list[int] | Array, max_new_tokens: int) -> list[int]:
        """As `caches.greedy`."""
        return caches.greedy(self.model, prompt_ids, max_new_tokens)
