"""The sublayers of transformers' decoder layers: located by the names of their modules, and left out.

Legend: B batch, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[…, any] → zeros […, C]."""
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)


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
def removed_after(hooks: list[Any]) -> Iterator[None]:
    """Removes hooks in the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
