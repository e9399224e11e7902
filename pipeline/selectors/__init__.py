"""Selectors: rules that turn (kind, count) into a skip set. One rule a file; the file's name, '_' for '-', is its name.

A selector is a function `choose(kind, count, num_layers) -> SkipSet`.
"""

from __future__ import annotations

import importlib
import pkgutil

from pipeline.types import SkipSet, UserError, count_of, parse_layers


def names() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def choose(name: str, kind: str, count: int, num_layers: int) -> SkipSet:
    """The skip set that the named selector gives.

    Raises:
        UserError: no such selector, or the count does not fit the model.
    """
    if name not in names():
        raise UserError(f"no selector {name!r}; choose from {', '.join(names())}")
    if not 0 <= count <= num_layers:
        raise UserError(f"--count {count} does not fit: the model has {num_layers} layers")
    room = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    chosen: SkipSet = room.choose(kind, count, num_layers)
    return chosen


def skip_set(
    skip: str | None, frac: float | None, count: int | None, layers: str | None, select: str | None, num_layers: int
) -> SkipSet:
    """What the options of `pipeline export` mean.

    Args:
        skip: a kind (attn, mlp, block) with one of frac, count or layers; or a whole skip set, 'attn20-28+mlp25-31'.

    Raises:
        UserError: options that contradict or lack each other, or layers that do not exist.
    """
    given = [name for name, value in (("--frac", frac), ("--count", count), ("--layers", layers)) if value is not None]
    if skip is None:
        if given or select:
            raise UserError(f"{given[0] if given else '--select'} needs --skip attn, mlp or block")
        return SkipSet()
    if skip not in ("attn", "mlp", "block"):
        if given or select:
            raise UserError(f"--skip {skip} names its layers already; leave {given[0] if given else '--select'} out")
        return SkipSet.parse(skip).within(num_layers)
    if len(given) != 1:
        what = " and ".join(given) if given else "none"
        raise UserError(f"--skip {skip} takes exactly one of --frac, --count and --layers; given: {what}")
    if layers is not None:
        if select:
            raise UserError("--layers names the layers already; leave --select out")
        return SkipSet.of(skip, parse_layers(layers)).within(num_layers)
    number = count if count is not None else count_of(frac or 0.0, num_layers)
    return choose(select or "last", skip, number, num_layers)
