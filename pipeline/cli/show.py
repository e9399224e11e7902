"""One artefact in full: what it leaves out, what that saves, and which engines run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import store
from pipeline.cli.app import LOOK, Json, app, show_result
from pipeline.cli.listing import check_state
from pipeline.store.records import EngineRecord, MergedRecord, QuantisedRecord, Sidecar
from pipeline.types import BASE, SkipSet, Variant, shown

if TYPE_CHECKING:
    from pipeline.models.compensation import MapGroup, MapSizes
    from pipeline.models.config import Config
    from pipeline.ship.engines import EngineUse

LENGTHS = (50, 100)
"""Tokens of the sequences whose FLOPs are given: those of the papers."""
UNITS = {"parameters": (1e6, "M"), "weight_bytes": (1e6, "MB"), "cache_bytes_per_token": (1, "B")}
"""Of the costs' lines; all others are GFLOP."""


@dataclass(frozen=True, slots=True)
class VariantCosts:
    """What a variant costs.

    Attributes:
        parameters: that it has.
        weight_bytes: of them, at its precision.
        flops: sequence length → FLOPs of its prefill.
        cache_bytes_per_token: of keys and values.
    """

    parameters: int
    weight_bytes: int
    flops: dict[int, int]
    cache_bytes_per_token: int

    def plain(self) -> dict[str, int]:
        """For JSON."""
        return {
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            **{f"flops_at_{length}": number for length, number in self.flops.items()},
            "cache_bytes_per_token": self.cache_bytes_per_token,
        }


@dataclass(frozen=True, slots=True)
class MergedDescription:
    """A merged graph, or the engine of one."""

    path: Path
    sidecar: MergedRecord | EngineRecord

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": str(self.path), "sidecar": self.sidecar.plain()}

    def text(self) -> str:
        """For a person."""
        return f"{self.path}: merged from {', '.join(self.sidecar.variants or ())}"


@dataclass(frozen=True, slots=True)
class Description:
    """A graph or an engine of one variant.

    Attributes:
        path: of the file.
        variant: that it computes.
        check: 'passed' or 'not passed yet'.
        layers: L of the original model.
        base, costs: what the base and the variant cost.
        engines: which run it, by which command.
        sidecar: what its sidecar says.
        maps: what stands in for skipped sublayers.
        folded: names of the weights that its compensation replaces.
        quantised: how its weights were quantised; None where they were not, or their record is gone.
    """

    path: Path
    variant: Variant
    check: str
    layers: int
    base: VariantCosts
    costs: VariantCosts
    engines: tuple[EngineUse, ...]
    sidecar: Sidecar
    maps: tuple[MapGroup, ...] = ()
    folded: tuple[str, ...] = ()
    quantised: QuantisedRecord | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "variant": self.variant.name,
            "check": self.check,
            "left_out": {**asdict(self.variant.skip), "of_layers": self.layers},
            "compensation": {
                "maps": [{**asdict(group), "places": group.names} for group in self.maps],
                "folded": list(self.folded),
            },
            "costs": {"base": self.base.plain(), "variant": self.costs.plain()},
            "quantised": self.quantised.plain() if self.quantised else None,
            "disk_bytes": self.sidecar.bytes,
            "indices": self._indices(),
            "engines": [engine.plain() for engine in self.engines],
            "sidecar": self.sidecar.plain(),
        }

    def text(self) -> str:
        """For a person."""
        skip = self.variant.skip
        attention, mlp = list(skip.attention) or "none", list(skip.mlp) or "none"
        lines = [
            f"{self.path}: {self.variant.name}, {self.variant.precision_name}, check {self.check}",
            f"left out    attention {attention}, MLP {mlp} of {self.layers} layers",
            *([f"weights     {self.quantised.words}"] if self.quantised else []),
            *self._compensation_lines(),
            *self._cost_lines(),
            f"{'file on disk':<22} {self.sidecar.bytes / 1e6:12,.2f} MB",
            f"indices     {self._indices()}",
            *self._engine_lines(),
        ]
        if isinstance(self.sidecar, EngineRecord) and (build := self.sidecar.build):
            figures = f"{build.num_layers} TensorRT layers, {build.build_seconds} s"
            lines.append(f"build       {figures}; {self.sidecar.proven}")
        return "\n".join(lines)

    def _compensation_lines(self) -> list[str]:
        lines = [
            f"compensation  {group.form}: {group.words()} ({group.parameters / 1e6:,.2f} M parameters)"
            for group in self.maps
        ]
        if self.folded:
            lines.append(f"folded      into {len(self.folded)} weights: {shown(self.folded)}")
        return lines

    def _cost_lines(self) -> list[str]:
        lines, base = [], self.base.plain()
        for name, number in self.costs.plain().items():
            scale, unit = UNITS.get(name, (1e9, "GFLOP"))
            whole = base[name]
            share = number / whole if whole else 1.0
            lines.append(
                f"{name:<22} {number / scale:12,.1f} {unit:<6} {share:7.1%} of base's {whole / scale:,.1f}"
            )
        return lines

    def _engine_lines(self) -> list[str]:
        from pipeline.ship import engines

        return [f"{'' if i else 'engines':<12}{line}" for i, line in enumerate(engines.lines(self.engines))]

    def _indices(self) -> dict[str, list[int]]:
        """The skip set under the names that pruning scripts use, LLM-Drop's."""
        skip = self.variant.skip
        return {"drop_attn_list": list(skip.attention), "drop_mlp_list": list(skip.mlp)}


def describe(path: Path) -> Description | MergedDescription:
    """Everything about one graph or engine.

    Raises:
        UserError: there is no such artefact, or it does not match its sidecar.
    """
    from pipeline.models import compensation, costs
    from pipeline.models.config import read_config
    from pipeline.ship import engines

    sidecar = store.sidecar(path)
    if isinstance(sidecar, MergedRecord) or (isinstance(sidecar, EngineRecord) and sidecar.variants):
        return MergedDescription(path, sidecar)
    variant, overlays = store.variant(path, quick=True), store.overlays(path)
    has_maps = variant.compensation is not None
    maps, folded = compensation.contents(store.compensation_overlay(path)) if has_maps else ((), ())
    if variant.compensation == "matrix":  # the shapes are those of `linear`
        maps = tuple(replace(group, form="matrix") if group.form == "linear" else group for group in maps)
    config = read_config(store.checkpoint_folder(path))
    layers = costs.sizes(config).layers
    return Description(
        path,
        variant,
        check_state(path, sidecar.sha256),
        layers,
        _costs(config, BASE, variant.precision_name, compensation.NO_MAPS),
        _costs(config, variant.skip, variant.precision_name, compensation.sizes(overlays)),
        engines.of_artefact(path),
        sidecar,
        maps,
        folded,
        _quantised(overlays) if variant.quantisation else None,
    )


def _quantised(overlays: Sequence[Path]) -> QuantisedRecord | None:
    """How the first of a graph's overlays, its quantised weights, were made."""
    return store.records.read_if_valid(QuantisedRecord, store.sidecar_path(overlays[0]))


def _costs(config: Config, skip: SkipSet, precision: str, maps: MapSizes) -> VariantCosts:
    from pipeline.models import costs

    return VariantCosts(
        costs.parameters(config, skip, maps),
        costs.weight_bytes(config, skip, precision, maps),
        {length: costs.flops(config, skip, length, maps=maps) for length in LENGTHS},
        costs.cache_bytes(config, skip, precision),
    )


@app.command(rich_help_panel=LOOK)
def show(path: Annotated[Path, typer.Argument(help="Graph or engine.")], as_json: Json = False) -> None:
    """One artefact in full: what is left out, what that saves, and which engines run it, by which command.

    Example: `pipeline show graphs/*/attn22-29.fp32.onnx`
    """
    description = describe(path)
    show_result(description.plain(), as_json, description.text())
