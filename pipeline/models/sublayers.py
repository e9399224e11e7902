"""The sublayers of transformers' decoder layers: located by the names of their modules, and left out.

Legend: B batch, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.types import Sublayer, UserError

_ATTENTION = ("self_attn", "attention", "attn")
_MLP = ("mlp", "fc2")  # OPT has no MLP module: its last linear is where the MLP joins the stream


class NoAttention(nn.Module):
    """Stands for an attention that is left out: zeros [B, T, C]. It never sees the cache.

    Args:
        original: the attention; Gemma 3's layers ask it whether it has a window.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.is_sliding = getattr(original, "is_sliding", False)

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, None]:
        """(zeros, no attention weights)."""
        return torch.zeros_like(hidden_states), None


class NoMlp(nn.Module):
    """Stands for an MLP that is left out: zeros.

    Args:
        width: C; what OPT's last linear is given has another.
        reads_stream: what stood there is a whole MLP, and no part of one.
    """

    def __init__(self, width: int, reads_stream: bool = True) -> None:
        super().__init__()
        self.width, self.reads_stream = width, reads_stream

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[…, any] → zeros […, C]."""
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)


def nothing(original: nn.Module, kind: str, width: int) -> nn.Module:
    """What stands in the place of a sublayer that is left out.

    Args:
        original: what stood there.
        kind: 'attn' or 'mlp'.
        width: C.
    """
    return NoAttention(original) if kind == "attn" else NoMlp(width, not isinstance(original, nn.Linear))


class MapModule(nn.Module):
    """What stands in for a sublayer: x · factors[0] · … + bias, over `scale`.

    Args:
        factors: none, [C, C], or [C, R] and [R, C].
        bias: [C].
        scale: what the decoder layer multiplies the sublayer's output by.
    """

    def __init__(self, factors: Sequence[torch.Tensor], bias: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.factors = nn.ParameterList(nn.Parameter(part, requires_grad=False) for part in factors)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, C] → [B, T, C]."""
        y = x if len(self.factors) else x.new_zeros(x.shape)
        for factor in self.factors:
            y = y @ factor
        y = y + self.bias
        return y if self.scale == 1 else y / self.scale


class MapAttention(NoAttention):
    """A map in the place of an attention, which never sees the cache.

    Args:
        original: what stood there.
        inner: the map.
    """

    def __init__(self, original: nn.Module, inner: MapModule) -> None:
        super().__init__(original)
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, None]:
        """(the map's output, no attention weights)."""
        return self.inner(hidden_states), None


def mapped(
    skipped: nn.Module, factors: Sequence[torch.Tensor], bias: torch.Tensor, scale: float
) -> nn.Module:
    """The module of a map, for the place of one that a sublayer was skipped with; arguments as `MapModule`.

    Raises:
        UserError: the module there is a part of an MLP (OPT's last linear), which does not see what it reads.
    """
    inner = MapModule(factors, bias, scale)
    if isinstance(skipped, NoAttention):
        return MapAttention(skipped, inner)
    if isinstance(skipped, MapModule) or (isinstance(skipped, NoMlp) and skipped.reads_stream):
        return inner
    raise UserError("this architecture's MLP is no module of its own: no map can stand in its place")


def map_run(first: nn.Module, factors: Sequence[torch.Tensor], bias: torch.Tensor) -> None:
    """Lets a map of the stream stand for a run of skipped layers: x + x · factors[0] · … + bias before it.

    Args:
        first: the run's first decoder layer.
        factors: as `MapModule`.
        bias: [C].
    """
    inner = MapModule(factors, bias)

    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] + inner(args[0]), *args[1:]), kwargs
        stream = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": stream + inner(stream)}

    if old := vars(first).pop("run_map", None):
        old.remove()
    vars(first)["run_map"] = first.register_forward_pre_hook(hook, with_kwargs=True)


def has_run_map(layer: nn.Module) -> bool:
    """Whether the map of a run of layers stands before a layer."""
    return "run_map" in vars(layer)


def is_mapped(module: nn.Module) -> bool:
    """Whether a module is a map that stands in for a sublayer."""
    return isinstance(module, MapModule | MapAttention)


@contextmanager
def restored(layers: nn.ModuleList) -> Iterator[None]:
    """Puts back in the end what stood in decoder layers, and takes away maps of runs that have come since."""
    kept = [(dict(layer.named_children()), has_run_map(layer)) for layer in layers]
    try:
        yield
    finally:
        for layer, (modules, had_map) in zip(layers, kept, strict=True):
            for name, module in modules.items():
                setattr(layer, name, module)
            if not had_map and (hook := vars(layer).pop("run_map", None)):
                hook.remove()


def decoder_layers(model: PreTrainedModel, folder: Path) -> nn.ModuleList:
    """The list of decoder layers: the outermost ModuleList with as many entries as the config has layers.

    Raises:
        UserError: there is none.
    """
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"{folder}: no list of {count} decoder layers in {type(model).__name__}; "
        "check cannot skip its sublayers"
    )


def of_layer(layer: int) -> tuple[tuple[Sublayer, tuple[str, ...]], ...]:
    """A layer's sublayers, and the names that their modules may have."""
    return ((layer, "attn"), _ATTENTION), ((layer, "mlp"), _MLP)


def module_name(layer: nn.Module, names: tuple[str, ...], folder: Path) -> str:
    """The name under which a decoder layer keeps a sublayer.

    Raises:
        UserError: the layer has none of the names.
    """
    for name in names:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise UserError(
        f"{folder}: {type(layer).__name__} has none of {', '.join(names)}; check cannot skip its sublayers"
    )


def refuse_unexplained(
    before: dict[int, torch.Tensor], added: dict[Sublayer, torch.Tensor], after: dict[int, torch.Tensor]
) -> None:
    """Refuses a layer that does more to the stream than adding what its sublayers were seen to give.

    Args:
        before: layer → the stream before it.
        added: what each sublayer adds.
        after: layer → the stream after it; all [B, T, C], in fp32.

    Raises:
        UserError: they do not add up in some layer.
    """
    for layer, stream in after.items():
        if not stream.isfinite().all():
            continue  # an overflow or a broken weight, which is said of the logits
        explained = before[layer].clone()
        for kind in ("attn", "mlp"):
            if (layer, kind) in added:
                explained += added[layer, kind]
        if not (explained - stream).abs().max() <= 1e-3 * stream.abs().max():
            raise UserError(
                f"layer {layer}: what its attention and MLP give does not add up to what the layer adds to "
                "the residual stream (a norm or a factor behind them that is not known here); its sublayers "
                "cannot be told apart"
            )


def keep_input(kept: dict[Any, torch.Tensor], key: Any) -> Callable[..., None]:
    """A hook before a module that keeps the stream which enters it."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[key] = args[0] if args else kwargs["hidden_states"]

    return hook


def keep_output(kept: dict[Any, torch.Tensor], key: Any, factor: float = 1) -> Callable[..., None]:
    """A hook behind a module that keeps what leaves it, times a factor."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        left = output if isinstance(output, torch.Tensor) else output[0]
        kept[key] = left if factor == 1 else left * factor

    return hook


@contextmanager
def raw_input(layer: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Keeps under 0 what enters a decoder layer, before a run's map changes it, of passes made meanwhile."""
    kept: dict[int, torch.Tensor] = {}
    hook = layer.register_forward_pre_hook(keep_input(kept, 0), with_kwargs=True, prepend=True)
    with removed_after([hook]):
        yield kept


@contextmanager
def removed_after(hooks: list[Any]) -> Iterator[None]:
    """Removes hooks in the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
