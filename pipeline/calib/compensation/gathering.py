"""One pass of the whole model over text: the moments of every place in which a map is to stand.

Legend: N sequences, T tokens, C hidden size, n tokens; h what a map reads in its place, f what it is to add
to the stream there, y what the sublayer just before the place added. X is h with a column of ones appended.

In many models some tokens, the first of a sequence above all, carry activations a thousand times as large as
the others' (Sun et al. 2024, arXiv:2402.17762). Where f is one of them, its square would outweigh all others,
so that such a token counts for less. It is not left out: a map that has not seen a massive y or x throws it
anywhere, and with it every token that attends to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.calib.compensation.device_sums import DeviceSums, device_bytes
from pipeline.calib.compensation.maps import Moments
from pipeline.models import devices
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.models.sublayers import keep_input, removed_after
from pipeline.types import Sublayer, UserError

Array = npt.NDArray[Any]
HELD_BACK = 8
"""One sequence in so many is not fitted on, at most so many: ridge, form and refit are chosen by them. They
are the last ones: their neighbours' documents go on in sequences that lie between fitted ones."""
OUTLIER = 8.0
"""So many times the median length of a sequence's f is a massive activation."""
SHARE = 0.5
"""Of a GPU's free memory, that sums may take: the passes need some too."""
HELD_TOKENS = 1024
"""At most so many tokens are held back, as they are."""


@dataclass(frozen=True, slots=True)
class Activations:
    """What some tokens have in one place.

    Attributes:
        h, f: [n, C].
        y: [n, C]; None where nothing was written before.
        x: [n, C], the stream before the place; of one sequence, its first token first.
    """

    h: Array
    f: Array
    y: Array | None
    x: Array


@dataclass
class PlaceMoments:
    """What a map in one place follows from.

    Attributes:
        mapped: of h → f.
        folded: of y → f; None where nothing was written before.
        between: Xᵀy [C + 1, C] float64: what a fold leaves over is fitted by it.
        energy: Σ|f|² over the tokens of the moments, weighted as they are there.
        stream: Σ|x|² of them, without first tokens.
        held_tokens: h, y and f [n, C] float32 of tokens that are in no moment.
    """

    mapped: Moments
    folded: Moments | None = None
    between: Array | None = None
    energy: float = 0.0
    stream: float = 0.0
    held_tokens: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def empty(cls, place: MapPlace, width: int) -> PlaceMoments:
        """Of no tokens.

        Args:
            place: where.
            width: C.
        """
        if before(place.sublayers[0]) is None:
            return cls(Moments.empty(width))
        return cls(Moments.empty(width), Moments.empty(width), np.zeros((width + 1, width)))

    def take(self, rows: Activations, number: int, samples: int, sums: DeviceSums | None = None) -> None:
        """Adds a sequence to the sums, or holds it back.

        Args:
            rows: what it has in this place.
            number: its own.
            samples: N.
            sums: where products are summed up, if not here.
        """
        sequences = held_back(samples)
        if number in sequences:
            self.hold(rows, max(HELD_TOKENS // len(sequences), 1))
        else:
            self.add(rows, sums)

    def add(self, rows: Activations, sums: DeviceSums | None = None) -> None:
        """Adds a sequence to the sums; its products to those on a device, where there are any."""
        weights = token_weights(rows.f)
        self.energy += float(weights @ np.square(rows.f, dtype=np.float64).sum(axis=1))
        self.stream += float(np.square(rows.x[1:], dtype=np.float64).sum())
        if sums is not None:
            sums.add(rows.h, rows.f, rows.y, weights)
            return
        weighted = self.mapped.add(rows.h, rows.f, weights)
        if self.folded is not None and self.between is not None and rows.y is not None:
            self.folded.add(rows.y, rows.f, weights)
            self.between[...] += weighted.T @ rows.y.astype(np.float64)

    def hold(self, rows: Activations, share: int) -> None:
        """Keeps some tokens of a sequence as they are, but not its first.

        Args:
            rows: the sequence's.
            share: how many.
        """
        chosen = np.linspace(1, len(rows.h) - 1, min(share, len(rows.h) - 1)).astype(int)
        for name, part in (("h", rows.h), ("y", rows.y), ("f", rows.f)):
            if part is not None:
                there = self.held_tokens.get(name, np.empty((0, part.shape[1]), np.float32))
                self.held_tokens[name] = np.concatenate([there, part[chosen].astype(np.float32)])


def before(sublayer: Sublayer) -> Sublayer | None:
    """The sublayer that adds to the stream just before another; None before the first."""
    layer, kind = sublayer
    if kind == "mlp":
        return layer, "attn"
    return (layer - 1, "mlp") if layer else None


def token_weights(added: Array) -> Array:
    """[n] of f [n, C]: 1; less where f is so long that its square would outweigh that of all others.

    Such a token counts as one of `OUTLIER` times the sequence's median length does.
    """
    lengths = np.linalg.norm(added.astype(np.float64), axis=1)
    longest = OUTLIER * np.median(lengths)
    weights: Array = np.square(longest / np.maximum(lengths, longest)) if longest else np.ones(len(lengths))
    return weights


def held_back(samples: int) -> range:
    """Which of so many sequences are held back.

    Args:
        samples: N.
    """
    return range(samples - min(max(samples // HELD_BACK, 1), HELD_BACK), samples)


def bytes_needed(width: int) -> int:
    """Memory of one place's moments while they are gathered.

    Args:
        width: C.
    """
    return 8 * 5 * (width + 1) ** 2 + 4 * 3 * HELD_TOKENS * width


def groups(places: Iterable[MapPlace], width: int, budget: int) -> list[list[MapPlace]]:
    """The places in the order of the stream, in groups whose moments fit the memory: a pass each.

    Args:
        places: which.
        width: C.
        budget: bytes.

    Raises:
        UserError: the moments of one alone do not fit.
    """
    size = budget // bytes_needed(width)
    if size < 1:
        raise UserError(
            f"--memory: {budget / 1e6:.1f} MB are too little: the sums of one sublayer take "
            f"{bytes_needed(width) / 1e6:.1f} MB"
        )
    ordered = sorted(set(places))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def gather(
    reference: Reference, tokens: Array, places: Sequence[MapPlace], advance: Callable[[], None]
) -> dict[MapPlace, PlaceMoments]:
    """The moments of some places in one pass.

    Args:
        reference: the whole model, in fp32.
        tokens: [N, T] ids, N at least 2 and T at least 2.
        places: which.
        advance: called after each sequence.

    Raises:
        UserError: activations that are not finite, by layer; fewer than two sequences; an MLP that is no
            module of its own.
    """
    if len(tokens) < 2:
        raise UserError("at least two sequences are needed: the ridge is chosen on one that is not fitted on")
    modules = reference.sublayers()
    if any(isinstance(modules[one], nn.Linear) for place in places for one in place.sublayers):
        raise UserError("this architecture's MLP is no module of its own: no map can stand in its place")
    width = reference.model.config.hidden_size
    moments = {place: PlaceMoments.empty(place, width) for place in places}
    sums = _device_sums(reference, moments, width)
    ordered = sorted(places, key=lambda one: one.kind == "block")  # an error names a sublayer first
    for number, row in enumerate(tokens):
        for place, rows in _activations(reference, row, ordered):
            moments[place].take(rows, number, len(tokens), sums.get(place))
        advance()
    for place, of_place in sums.items():
        of_place.add_to(moments[place].mapped, moments[place].folded, moments[place].between)
    return moments


def _device_sums(
    reference: Reference, moments: Mapping[MapPlace, PlaceMoments], width: int
) -> dict[MapPlace, DeviceSums]:
    """Sums beside the model on its GPU, if all of them fit there; none of them, if not."""
    needed = sum(device_bytes(width, one.folded is not None) for one in moments.values())
    if needed > SHARE * devices.free_bytes(reference.device):
        return {}
    return {
        place: DeviceSums(width, one.folded is not None, reference.device) for place, one in moments.items()
    }


def activations(reference: Reference, row: Array, place: MapPlace) -> Activations:
    """What one place has of one sequence.

    Args:
        reference: a model in which the place's sublayers are there.
        row: [T] ids.
        place: which.

    Raises:
        UserError: they are not finite.
    """
    ((_, rows),) = _activations(reference, row, [place])
    return rows


def _activations(
    reference: Reference, row: Array, places: Sequence[MapPlace]
) -> Iterator[tuple[MapPlace, Activations]]:
    """What each place has of one sequence."""
    single = [place.sublayers[0] for place in places if place.kind != "block"]
    writers = [writer for place in places if (writer := before(place.sublayers[0])) is not None]
    ends = sorted({place.last for place in places if place.kind == "block"})
    with (
        _receiving(reference, single) as receiving,
        reference.adding({*single, *writers}) as adding,
        reference.entering() as entering,
        reference.leaving(ends) as leaving,
        torch.inference_mode(),
    ):
        reference.logits_at(torch.from_numpy(np.asarray(row, np.int64))[None], torch.arange(0))
        for place in places:
            sublayer, x = place.sublayers[0], entering[place.first]
            y = adding[writer] if (writer := before(sublayer)) else None
            if place.kind == "block":
                h, f = x, leaving[place.last] - x
            else:
                h, f = receiving[sublayer], adding[sublayer]
                x = x + y if sublayer[1] == "mlp" and y is not None else x
            parts = [None if p is None else p.reshape(len(row), -1).cpu().numpy() for p in (h, f, y, x)]
            yield place, _finite(place, parts)


def _finite(place: MapPlace, parts: list[Array | None]) -> Activations:
    h, f, y, x = parts
    assert h is not None and f is not None and x is not None
    if not all(np.isfinite(part).all() for part in (h, f, x)):
        raise UserError(
            f"the activations of {place.layers} ({place.kind}) are not finite; a weight is NaN or infinite, "
            "or the numbers are too large: look with `pipeline check --localize`"
        )
    return Activations(h, f, y, x)


@contextmanager
def _receiving(reference: Reference, sublayers: Sequence[Sublayer]) -> Iterator[dict[Sublayer, torch.Tensor]]:
    """Keeps what these sublayers' modules receive [B, T, C], of the passes made meanwhile."""
    kept: dict[Sublayer, torch.Tensor] = {}
    modules = reference.sublayers()
    hooks = [
        modules[one].register_forward_pre_hook(keep_input(kept, one), with_kwargs=True) for one in sublayers
    ]
    with removed_after(hooks):
        yield kept
