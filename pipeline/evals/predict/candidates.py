"""The variants that are predicted: what each leaves out, and the maps that stand in for it.

Legend: C hidden size, L layers, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import store
from pipeline.calib.skip_options import SkipOptions
from pipeline.evals.predict.launches import StandIn
from pipeline.models import compensation, costs, safetensors_index
from pipeline.models.compensation import NO_MAPS, MapSizes
from pipeline.models.named_configs import NamedConfig
from pipeline.types import KINDS, SkipSet, UserError, split_name

FRACTIONS = (0.33, 0.25, 0.10)
"""Those of Tyukin et al. 2024, of layers that are left out."""
GRID = ("block", "attn", "mlp")


@dataclass(frozen=True, slots=True)
class CostedVariant:
    """A variant, by what it costs.

    Attributes:
        name: the variant's.
        skip: what it leaves out.
        maps: numbers that its compensation holds.
        stand_ins: its maps, one by one.
    """

    name: str
    skip: SkipSet
    maps: MapSizes = NO_MAPS
    stand_ins: tuple[StandIn, ...] = ()


def base(model: NamedConfig) -> CostedVariant:
    """The model as it is, which what its config.json drops is left out of."""
    return CostedVariant(model.dropped.name, model.dropped)


def candidates(model: NamedConfig, texts: Iterable[str], amounts: SkipOptions) -> list[CostedVariant]:
    """The variants that are asked for, each once; without a text the papers' nine.

    Args:
        model: whose layers are counted.
        texts: of --skip, each a kind or a variant's name, 'mlp12-17~linear'.
        amounts: --frac, --count and --layers, which go with the kinds.

    Raises:
        UserError: as `SkipOptions.skip_set`; an amount without a kind; no such compensation.
    """
    layers, texts = costs.sizes(model.config).layers, list(texts)
    given = [amounts.frac, amounts.count, amounts.layers] != [None, None, None]
    if given and not any(text in KINDS for text in texts):
        raise UserError("--frac, --count and --layers go with --skip attn, mlp or block")
    if texts:
        chosen = [_candidate(model, text, amounts, layers) for text in texts]
    else:
        options = [SkipOptions(kind, frac=frac) for kind in GRID for frac in FRACTIONS]
        skips = [one.skip_set(layers) | model.dropped for one in options]
        chosen = [CostedVariant(skip.name, skip) for skip in skips]
    return list({one.name: one for one in chosen if one.name != base(model).name}.values())


def _candidate(model: NamedConfig, text: str, amounts: SkipOptions, layers: int) -> CostedVariant:
    if text in KINDS:
        skip = replace(amounts, skip=text).skip_set(layers) | model.dropped
        return CostedVariant(skip.name, skip)
    name, form, adapter = split_name(text)
    skip = SkipOptions(name).skip_set(layers) | model.dropped
    if form is None:
        return CostedVariant("~".join(filter(None, (skip.name, adapter))), skip)
    name = f"{skip.name}~{form}"
    overlay = store.overlay_path(model.folder, name) if model.folder else None
    fitted = overlay is not None and overlay.is_file()
    maps, stand_ins = _of_overlay(overlay) if overlay and fitted else _of_form(model, skip, form)
    return CostedVariant("~".join(filter(None, (name, adapter))), skip, maps, stand_ins)


def _of_overlay(file: Path) -> tuple[MapSizes, tuple[StandIn, ...]]:
    """The maps that were fitted: a run of whole layers may have one."""
    places = compensation.places(safetensors_index.read_index([file]), file)
    stand_ins = (
        StandIn(len(names), bool(names) and place.kind != "block") for place, names in places.items()
    )
    return compensation.sizes([file]), tuple(stand_ins)


def _of_form(model: NamedConfig, skip: SkipSet, form: str) -> tuple[MapSizes, tuple[StandIn, ...]]:
    """The maps of a form that is fitted nowhere yet: one for each sublayer that is skipped."""
    width = model.config["hidden_size"]
    count = len(skip.attention) + len(skip.mlp)
    rank = compensation.rank_of(form)
    if rank is not None and rank > width:
        raise UserError(f"{form}: a rank of {rank} is not between 1 and the hidden size {width}")
    products = width * width if rank is None else 2 * width * rank
    matrices = 1 if rank is None else 2 if rank else 0
    sizes = MapSizes(count * (products + width), count * products)
    return sizes, count * (StandIn(matrices, bool(matrices)),)
