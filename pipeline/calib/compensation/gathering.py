"""One pass of the whole model over text: the moments of every sublayer that a map is to stand in for.

Legend: N sequences, T tokens, C hidden size, n tokens; h what enters a sublayer, f what it adds to the
stream, y what the sublayer just before it added.

The first token of each sequence is left out: its activations are outliers (Xiao et al. 2023,
arXiv:2309.17453) that would outweigh all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.calib.compensation.maps import Moments
from pipeline.models.reference import Reference
from pipeline.models.sublayers import keep_input, removed_after
from pipeline.types import Sublayer, UserError

Array = npt.NDArray[Any]
HELD_BACK = 8
"""One sequence in so many is not fitted on: the ridge is chosen by it."""
HELD_TOKENS = 1024
"""At most so many tokens are held back, as they are."""


@dataclass
class SublayerMoments:
    """What a map in the place of one sublayer follows from.

    Attributes:
        mapped: of h → f.
        folded: of y → f; None for the first sublayer, which has none before it.
        energy: Σ|f|² over the tokens of the moments.
        held: h, y and f [n, C] float32 of tokens that are in no moment.
    """

    mapped: Moments
    folded: Moments | None
    energy: float = 0.0
    held: dict[str, Array] = field(default_factory=dict)

    def add(self, h: Array, y: Array | None, f: Array) -> None:
        """Adds tokens [n, C] to the sums."""
        self.mapped.add(h, f)
        self.energy += float(np.square(f, dtype=np.float64).sum())
        if self.folded is not None and y is not None:
            self.folded.add(y, f)

    def hold(self, h: Array, y: Array | None, f: Array, share: int) -> None:
        """Keeps some tokens of a sequence as they are.

        Args:
            h: [n, C].
            y: [n, C].
            f: [n, C].
            share: how many.
        """
        chosen = np.linspace(0, len(h) - 1, min(share, len(h))).astype(int)
        for name, rows in (("h", h), ("y", y), ("f", f)):
            if rows is not None:
                there = self.held.get(name, np.empty((0, rows.shape[1]), np.float32))
                self.held[name] = np.concatenate([there, rows[chosen].astype(np.float32)])


def before(sublayer: Sublayer) -> Sublayer | None:
    """The sublayer that adds to the stream just before another; None before the first."""
    layer, kind = sublayer
    if kind == "mlp":
        return layer, "attn"
    return (layer - 1, "mlp") if layer else None


def bytes_needed(width: int, fold: bool = True) -> int:
    """Memory of one sublayer's moments while they are gathered.

    Args:
        width: C.
        fold: whether those of y → f are gathered too.
    """
    return 8 * (2 if fold else 1) * (width + 1) * (2 * width + 1) + 4 * 3 * HELD_TOKENS * width


def groups(sublayers: Iterable[Sublayer], width: int, budget: int) -> list[list[Sublayer]]:
    """The sublayers in the order of the stream, in groups whose moments fit the memory: a pass each.

    Args:
        sublayers: which.
        width: C.
        budget: bytes.

    Raises:
        UserError: the moments of one alone do not fit.
    """
    size = budget // bytes_needed(width)
    if not size:
        raise UserError(
            f"--memory {budget / 1e6:.0f} MB is too little: the sums of one sublayer take "
            f"{bytes_needed(width) / 1e6:.0f} MB"
        )
    ordered = sorted(set(sublayers))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def gather(
    reference: Reference, tokens: Array, sublayers: Sequence[Sublayer], advance: Callable[[], None]
) -> dict[Sublayer, SublayerMoments]:
    """The moments of some sublayers in one pass.

    Args:
        reference: the whole model, in fp32.
        tokens: [N, T] ids, N at least 2 and T at least 2.
        sublayers: which.
        advance: called after each sequence.

    Raises:
        UserError: activations that are not finite, by layer; fewer than two sequences.
    """
    if len(tokens) < 2:
        raise UserError("at least two sequences are needed: the ridge is chosen on one that is not fitted on")
    width = reference.model.config.hidden_size
    moments = {
        one: SublayerMoments(Moments.empty(width), Moments.empty(width) if before(one) else None)
        for one in sublayers
    }
    held = set(range(HELD_BACK - 1, len(tokens), HELD_BACK)) or {len(tokens) - 1}
    share = max(HELD_TOKENS // len(held), 1)
    for number, row in enumerate(tokens):
        for sublayer, (h, y, f) in _activations(reference, row, sublayers):
            if number in held:
                moments[sublayer].hold(h, y, f, share)
            else:
                moments[sublayer].add(h, y, f)
        advance()
    return moments


def _activations(
    reference: Reference, row: Array, sublayers: Sequence[Sublayer]
) -> Iterator[tuple[Sublayer, tuple[Array, Array | None, Array]]]:
    """(sublayer, (h, y, f)), each [T - 1, C], of one sequence."""
    writers = {writer for one in sublayers if (writer := before(one)) is not None}
    with _entering(reference, sublayers) as entering, reference.adding({*sublayers, *writers}) as adding:
        with torch.inference_mode():
            ids = torch.from_numpy(np.asarray(row, np.int64))[None]
            reference.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        for sublayer in sublayers:
            writer = before(sublayer)
            rows = (entering[sublayer], adding[writer] if writer else None, adding[sublayer])
            h, y, f = (None if part is None else part.reshape(len(row), -1)[1:].numpy() for part in rows)
            assert h is not None and f is not None
            if not (np.isfinite(h).all() and np.isfinite(f).all()):
                layer, kind = sublayer
                raise UserError(
                    f"the activations of layer {layer}'s {kind} are not finite; "
                    "a weight is NaN or infinite: look with `pipeline check --localize`"
                )
            yield sublayer, (h, y, f)


@contextmanager
def _entering(reference: Reference, sublayers: Sequence[Sublayer]) -> Iterator[dict[Sublayer, torch.Tensor]]:
    """Keeps what enters these sublayers [B, T, C], of the passes made meanwhile."""
    kept: dict[Sublayer, torch.Tensor] = {}
    modules = reference.sublayers()
    hooks = [
        modules[one].register_forward_pre_hook(keep_input(kept, one), with_kwargs=True) for one in sublayers
    ]
    with removed_after(hooks):
        yield kept
