"""What exists, and one artefact whole: what it leaves out, what that saves, and its skip set as other tools write it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import store
from pipeline.cli.app import LOOK, Json, app, show_result
from pipeline.models import costs
from pipeline.types import BASE, SkipSet, UserError

LENGTHS = (50, 100)


def inventory() -> dict[str, list[dict[str, Any]]]:
    """Model → its graphs and engines, with precision, size and whether the check has passed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for model in store.models():
        found[model] = [_entry(path) for path in [*store.graphs_of(model), *store.engines_of(model)]]
    return found


def _entry(path: Path) -> dict[str, Any]:
    try:
        record = store.read_sidecar(path, quick=True)
    except UserError as error:
        return {"path": str(path), "problem": str(error)}
    state = "passed" if store.check_passed(path, record["sha256"]) else "not passed yet"
    return {
        "path": str(path),
        "variant": record["variant"],
        "precision": record["precision"],
        "bytes": record["bytes"],
        "check": state,
    }


def inventory_text(found: dict[str, list[dict[str, Any]]]) -> str:
    """The inventory for a person."""
    if not found:
        return "no model under graphs/; begin with `pipeline export demo`"
    lines = []
    for model, entries in found.items():
        lines.append(model)
        for entry in entries:
            what = entry.get("problem") or f"{entry['bytes'] / 1e6:8.2f} MB  check {entry['check']}"
            lines.append(f"  {entry['path']:<70} {what}")
    return "\n".join(lines)


def describe(path: Path) -> dict[str, Any]:
    """Everything about one graph or engine, as plain data.

    Raises:
        UserError: no such artefact, or it does not match its sidecar.
    """
    record = store.read_sidecar(path)
    if "variants" in record:  # a merged graph, or the engine of one
        return {"path": str(path), "sidecar": record}
    variant = store.variant_of(record)
    config = store.read_json(store.checkpoint_folder(path) / "config.json")
    layers = costs.sizes(config).layers
    return {
        "path": str(path),
        "variant": variant.name,
        "check": "passed" if store.check_passed(path) else "not passed yet",
        "left_out": {
            "attention": list(variant.skip.attention),
            "mlp": list(variant.skip.mlp),
            "of_layers": layers,
        },
        "costs": {
            name: _costs(config, skip, variant.precision)
            for name, skip in (("base", BASE), ("variant", variant.skip))
        },
        "disk_bytes": path.stat().st_size,
        "other_tools": other_tools(variant.skip, layers),
        "sidecar": record,
    }


def _costs(config: dict[str, Any], skip: SkipSet, precision: str) -> dict[str, int]:
    return {
        "parameters": costs.parameters(config, skip),
        "weight_bytes": costs.weight_bytes(config, skip, precision),
        **{f"flops_at_{n}": costs.flops(config, skip, n) for n in LENGTHS},
        "cache_bytes_per_token": costs.cache_bytes(config, skip, precision),
    }


def other_tools(skip: SkipSet, layers: int) -> dict[str, Any]:
    """The skip set as llama.cpp, TensorRT-LLM and plain JSON take it.

    `llama.cpp`: the list for `llama-quantize --prune-layers`, which takes whole blocks only (None where others go too).
    `block_configs`: one entry a layer in the manner of TensorRT-LLM's nemotron_nas configs.
    """
    whole = sorted(set(skip.attention) & set(skip.mlp))
    return {
        "indices": {"drop_attn_list": list(skip.attention), "drop_mlp_list": list(skip.mlp)},
        "llama.cpp": ",".join(map(str, whole)) if skip.attention == skip.mlp else None,
        "block_configs": [
            {"attention": {"no_op": (i, "attn") in skip}, "ffn": {"no_op": (i, "mlp") in skip}}
            for i in range(layers)
        ],
    }


def describe_text(found: dict[str, Any]) -> str:
    """The description for a person."""
    if "costs" not in found:
        return f"{found['path']}: merged from {', '.join(found['sidecar']['variants'])}"
    base, mine = found["costs"]["base"], found["costs"]["variant"]
    left = found["left_out"]
    lines = [
        f"{found['path']}: {found['variant']}, check {found['check']}",
        f"left out    attention {left['attention'] or 'none'}, MLP {left['mlp'] or 'none'} of {left['of_layers']} layers",
    ]
    units = {"parameters": (1e6, "M"), "weight_bytes": (1e6, "MB"), "cache_bytes_per_token": (1, "B")}
    for key in mine:
        scale, unit = units.get(key, (1e9, "GFLOP"))
        share = mine[key] / base[key] if base[key] else 1.0
        lines.append(
            f"{key:<22} {mine[key] / scale:12,.1f} {unit:<6} {share:7.1%} of base's {base[key] / scale:,.1f}"
        )
    lines.append(f"{'file on disk':<22} {found['disk_bytes'] / 1e6:12,.2f} MB")
    tools = found["other_tools"]
    blocks = tools["llama.cpp"]
    lines.append(
        f"llama.cpp   {'takes whole blocks only; this skip set has others' if blocks is None else blocks or 'nothing to prune'}"
    )
    lines.append(f"indices     {tools['indices']}")
    if "build" in found["sidecar"]:
        figures = found["sidecar"]["build"]
        lines.append(
            f"build       {figures['num_layers']} TensorRT layers, {figures['build_seconds']} s; {found['sidecar']['proven']}"
        )
    return "\n".join(lines)


@app.command("list", rich_help_panel=LOOK)
def list_(as_json: Json = False) -> None:
    """What exists: models, graphs, engines, and whether each has passed its check.

    Example: `pipeline list --json`
    """
    found = inventory()
    show_result(found, as_json, inventory_text(found))


@app.command(rich_help_panel=LOOK)
def show(path: Annotated[Path, typer.Argument(help="Graph or engine.")], as_json: Json = False) -> None:
    """One artefact whole: what is left out, what that saves, and its skip set in the forms other tools take.

    Example: `pipeline show graphs/*/attn22-29.fp32.onnx`
    """
    described = describe(path)
    show_result(described, as_json, describe_text(described))
