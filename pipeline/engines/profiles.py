"""The ranges of an engine's dimensions, and the optimization profiles that they make.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pipeline.models.config import read_config
from pipeline.runtime.tensorrt_library import Profile, Range, Shape
from pipeline.store.records import Ranges
from pipeline.types import UserError

log = logging.getLogger(__name__)
MAX_WANTED = 128
"""K at most: positions whose logits an engine gives at once. Each costs B·V numbers of activation memory."""


CHUNK = 256
"""S at most with a static cache: a longer prompt is read in pieces of so many tokens."""


def ranges(folder: Path, batch: Range, length: Range, past: Range) -> Ranges:
    """The ranges of an engine: no longer than the model's context.

    Args:
        folder: of the checkpoint.
        batch: minimum, optimum and maximum of B.
        length: of S in prefill.
        past: of P.

    Raises:
        UserError: one is not in ascending order.
    """
    options = (("--batch", batch, 1), ("--length", length, 1), ("--past", past, 0))
    for option, (low, best, high), least in options:
        if not least <= low <= best <= high:
            raise UserError(
                f"{option} {low},{best},{high} is not min,opt,max in ascending order from {least}"
            )
    context = read_config(folder).get("max_position_embeddings")
    if isinstance(context, int):
        length, past = _cut(length, context), _cut(past, context - 1)
    return Ranges(batch=batch, length=length, past=past, wanted=(1, 1, min(MAX_WANTED, length[2])))


def within_places(built: Ranges, places: int) -> Ranges:
    """The ranges of an engine with a static cache: prompts come in pieces, and P is no dimension of it.

    Args:
        built: of an engine whose cache grows.
        places: N of the cache.
    """
    length, past = _cut(built.length, min(CHUNK, places)), (0, min(built.past[1], places - 1), places - 1)
    return Ranges(batch=built.batch, length=length, past=past, wanted=_cut(built.wanted, length[2]))


def _cut(sizes: Range, most: int) -> Range:
    low, best, high = sizes
    return min(low, most), min(best, most), min(high, most)


def log_cut(built: Ranges, length: Range, past: Range, places: int | None = None) -> None:
    """Logs what is built where the context, or a static cache's places, cut the ranges of S and P."""
    if places is not None:
        length_text = ",".join(map(str, built.length))
        log.info("a static cache of %d tokens: building for --length %s", places, length_text)
    elif (built.length, built.past) != (length, past):
        context = max(built.length[2], built.past[2] + 1)  # one of the two reaches it
        sizes = (",".join(map(str, built.length)), ",".join(map(str, built.past)))
        log.info("the model's context is %d tokens: building for --length %s --past %s", context, *sizes)


def profiles(inputs: Mapping[str, Shape], built: Ranges) -> tuple[Profile, Profile]:
    """One profile for prefill (S over its range, P from 0) and one for decode (S = 1, P over its range).

    T is P + S in both, also where no attention is left to read it. K is 1 in decode.

    Args:
        inputs: of the network; -1 is a dynamic dimension.
        built: ranges of B, S, P and K.
    """
    one = (1, 1, 1)
    return (
        _profile(inputs, (built.batch, built.length, (0, 0, built.past[2]), built.wanted)),
        _profile(inputs, (built.batch, one, built.past, one)),
    )


def _profile(inputs: Mapping[str, Shape], sizes: tuple[Range, Range, Range, Range]) -> Profile:
    """The inputs' shapes at the minimum, optimum and maximum of B, S, P and K."""
    low, best, high = zip(*sizes, strict=True)
    return {
        name: (_shape(name, shape, low), _shape(name, shape, best), _shape(name, shape, high))
        for name, shape in inputs.items()
    }


def _shape(name: str, shape: Shape, sizes: tuple[int, ...]) -> Shape:
    """The shape of one input at one size of B, S, P and K."""
    b, s, p, k = sizes
    if name.startswith("past_key_values."):
        dynamic = {0: b, 2: p}  # P is fixed where the cache is static
    else:
        dynamic = {0: b, 1: {"attention_mask": s + p, "logits_positions": k}.get(name, s)}
    return tuple(dynamic[axis] if size < 0 else size for axis, size in enumerate(shape))
