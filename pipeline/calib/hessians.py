"""What GPTQ reads of the inputs of every linear layer: H = XᵀX, of the whole model on text, in one pass.

The pass goes layer by layer, all sequences through one and then all through the next, so that no more than
one layer's sums are in memory. Linear layers that read one tensor (q, k and v; gate and up) share their sum.

In what q, k and v read, the first token of a sequence counts for more. Most models let every later token
attend to it where there is nothing else to attend to (attention sinks: Xiao et al. 2023, arXiv:2309.17453),
and keep its value small: the error of that value goes into all of them alike. Where it counts as any other,
GPTQ with 4 bits throws it far: of SmolLM2 the v projections, 3 % of the weights, are then half of the loss.

`compensate` gathers moments too, but of what a map of a whole sublayer reads, with a bias, some tokens
weighted down and others held back; and none of what o and down read.

Legend: N sequences, T tokens, C hidden size, L layers; X [N · T, in] what a linear layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.models.reference import Reference
from pipeline.models.sizes import rules_of
from pipeline.models.sublayers import removed_after
from pipeline.types import UserError

HEAD = "head"
SINK = 0.25
"""The first of T tokens counts SINK · T more: as if each token gave it half of its attention, squared."""


@dataclass
class Hessians:
    """Sums of one layer, or of the head.

    Attributes:
        sums: name of the first weight that reads some inputs → XᵀX [in, in] of them, in float64 on the
            model's device; where attention reads them, with the first token's weight.
        readers: name of each weight → the name under which its sum is.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)

    def add(self, inputs: dict[str, torch.Tensor], attended: Collection[str] = ()) -> None:
        """Adds what the linear layers read in a pass.

        Args:
            inputs: name of each weight → [B, T, in].
            attended: those weights of which queries, keys and values are made.
        """
        first: dict[tuple[int, bool], str] = {}
        for name, tensor in inputs.items():
            shared = first.setdefault((id(tensor), name in attended), name)
            self.readers[name] = shared
            if shared == name:
                product = _moment(tensor)
                if name in attended:
                    product += SINK * tensor.shape[1] * _moment(tensor[:, :1])
                self.sums[name] = self.sums[name].add_(product) if name in self.sums else product

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """The sums [in, in] by name, on the host.

        Raises:
            UserError: one is not finite.
        """
        for name, total in self.sums.items():
            if not torch.isfinite(total).all():
                raise UserError(
                    f"the inputs of {name} are not finite; a weight is NaN or infinite, or the numbers are "
                    "too large: look with `pipeline check --localize`"
                )
        return {name: total.float().cpu().numpy() for name, total in self.sums.items()}


def _moment(inputs: torch.Tensor) -> torch.Tensor:
    """XᵀX [in, in] float64 of [B, T, in]."""
    rows = inputs.reshape(-1, inputs.shape[-1]).float()
    return (rows.T @ rows).double()


def places(layers: int) -> list[str]:
    """'layer0', …, 'head': what is gathered at a time, in order.

    Args:
        layers: L.
    """
    return [*(f"layer{i}" for i in range(layers)), HEAD]


def gather(
    reference: Reference, tokens: npt.NDArray[np.int64], advance: Callable[[], None]
) -> Iterator[tuple[str, Hessians]]:
    """(place, sums) of every layer and of the head, one after another.

    In memory are N · T · C numbers of the stream, and one layer's sums.

    Args:
        reference: the whole model.
        tokens: [N, T] ids.
        advance: called after each sequence of each place.
    """
    rows = [torch.from_numpy(np.asarray(row, np.int64))[None] for row in tokens]
    streams: list[torch.Tensor | None] = [None] * len(rows)
    for i, place in enumerate(places(len(reference.layers))):
        sums, linears = Hessians(), _linears(reference, i)
        attended = _attended(reference, i, linears)
        for number, row in enumerate(rows):
            with _reading(linears) as inputs:
                streams[number] = _passed(reference, row, i, streams[number])
            sums.add(inputs, attended)
            advance()
        yield place, sums


def _linears(reference: Reference, layer: int) -> dict[str, nn.Module]:
    """Name of a weight → its linear layer, of those of a decoder layer; behind the last one, of the head."""
    if layer == len(reference.layers):
        head = rules_of(reference.model.config.model_type).head
        return {f"{head}.weight": reference.model.get_output_embeddings()}
    inside = set(reference.layers[layer].modules())
    return {
        f"{name}.weight": module
        for name, module in reference.model.named_modules()
        if module in inside and isinstance(module, nn.Linear)
    }


def _attended(reference: Reference, layer: int, linears: dict[str, nn.Module]) -> set[str]:
    """Of a layer's linear layers, those that make queries, keys and values."""
    if layer == len(reference.layers):
        return set()
    inside = set(reference.sublayers()[layer, "attn"].modules())
    output = f".{rules_of(reference.model.config.model_type).writers[0]}.weight"
    return {name for name, module in linears.items() if module in inside and not name.endswith(output)}


@contextmanager
def _reading(linears: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Keeps what linear layers read [B, T, in], of the pass made meanwhile."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            kept[name] = args[0]

        return hook

    with removed_after([module.register_forward_pre_hook(keep(name)) for name, module in linears.items()]):
        yield kept


class _Passed(Exception):
    """A pass that is over because nothing behind this place is needed."""


def _passed(
    reference: Reference, row: torch.Tensor, layer: int, stream: torch.Tensor | None
) -> torch.Tensor | None:
    """The stream [1, T, C] behind a layer, of a pass that begins before it; None behind the head.

    Args:
        reference: the whole model.
        row: [1, T] ids.
        layer: the layer; L for the head.
        stream: [1, T, C] before it; None before the first.
    """
    kept: list[torch.Tensor] = []

    def stop(_module: nn.Module, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        kept.append(output if isinstance(output, torch.Tensor) else output[0])
        raise _Passed

    def stop_before(_module: nn.Module, _args: object) -> None:
        raise _Passed

    with reference.entering(), reference.taken_up(layer, stream), torch.inference_mode():
        if layer < len(reference.layers):
            hook = reference.layers[layer].register_forward_hook(stop)
        else:
            hook = reference.model.get_output_embeddings().register_forward_pre_hook(stop_before)
        with removed_after([hook]), suppress(_Passed):
            reference.logits_at(row, torch.arange(row.shape[1]))
    return kept[0] if kept else None
