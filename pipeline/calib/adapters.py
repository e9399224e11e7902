"""LoRA adapters that heal a variant: where they lie, what they were trained for, and their merged weights.

An adapter lies in calib/<model>/<variant>/adapters/<name>/ in peft's own layout, with `heal.json` beside it.
A merge writes only the tensors that it touched, once, to graphs/<model>/<variant>~<name>.safetensors; graphs
of both precisions point there. The variant may be compensated, `mlp12-17~linear`: then the adapter was
trained beside the maps, and on top of the weights that a compensation folded.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.calib import adapter_files
from pipeline.calib.adapter_files import CONFIG, WEIGHTS, LoraLayer
from pipeline.models import safetensors_index
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.safetensors_index import torch_dtype
from pipeline.models.tensor_names import in_file
from pipeline.store import records
from pipeline.store.records import AdapterRecord, HealedProof, MergedTensors
from pipeline.types import UserError, Variant, file_name, first_line, is_compensation

if TYPE_CHECKING:
    import torch

RECORD = "heal.json"


def folder(calib: Path, variant: Variant, name: str) -> Path:
    """calib/<model>/<variant>/adapters/<name>, with `calib` for calib/<model>.

    Raises:
        UserError: no file can have that name, or a compensation has it: `mlp7~linear` would be two variants.
    """
    if is_compensation(name.partition("~")[0]):
        raise UserError(f"--name {name}: a compensation is called so; give the adapter another name")
    return calib / file_name(_unhealed(variant).name, 200) / "adapters" / store.plain_name(name)


def _unhealed(variant: Variant) -> Variant:
    return replace(variant, adapter=None)


def compensation(checkpoint: Checkpoint, variant: Variant) -> Path | None:
    """The overlay of a variant's compensation, on which its adapters are trained; None where it has none.

    Raises:
        UserError: it is not there.
    """
    if variant.compensation is None:
        return None
    path = store.overlay_path(checkpoint.folder, _unhealed(variant).name)
    if not path.is_file():
        raise UserError(f"{path} is missing; run {_compensate_command(checkpoint, variant)} again")
    return path


def overlay_digest(checkpoint: Checkpoint, variant: Variant) -> str | None:
    """SHA-256 of `compensation`; None where the variant has none."""
    overlay = compensation(checkpoint, variant)
    return None if overlay is None else store.sha256(overlay)


def _compensate_command(checkpoint: Checkpoint, variant: Variant) -> str:
    cut = store.graph_path(checkpoint.folder, Variant(checkpoint.model, variant.skip))
    return f"`pipeline compensate {shlex.quote(str(cut))} --with {variant.compensation}`"


def _heal_command(checkpoint: Checkpoint, variant: Variant, name: str) -> str:
    """How to train the adapter, its graph written first where it is not there."""
    graph = store.graph_path(checkpoint.folder, replace(_unhealed(variant), precision="fp32", head="gather"))
    if graph.is_file():
        return f"`pipeline heal {shlex.quote(str(graph))} --name {shlex.quote(name)}`"
    export = f"`pipeline export {shlex.quote(str(checkpoint.folder))} --skip {variant.skip.name}`"
    if variant.compensation:
        export = _compensate_command(checkpoint, variant)
    return f"{export}, and `pipeline heal --name {shlex.quote(name)}` of the graph that it prints"


def read(checkpoint: Checkpoint, variant: Variant, name: str) -> tuple[Path, AdapterRecord]:
    """The adapter's folder and its record, after a check that it was made for this variant of these weights.

    Args:
        checkpoint: the weights.
        variant: that it heals; its precision and its own adapter do not matter.
        name: of the adapter.

    Raises:
        UserError: there is none, it is not finished, it is of another variant, of other weights or of another
            compensation, or it was changed.
    """
    place, wanted = folder(checkpoint.calib, variant, name), _unhealed(variant).name
    command = _heal_command(checkpoint, variant, name)
    if not (place / RECORD).is_file() and (place / CONFIG).is_file():
        raise UserError(
            f"{place} has no {RECORD}: `heal` did not train it, and nothing in it proves which weights it is "
            f"of; merge it into its model with peft and export that, or train one with {command}"
        )
    if not (place / RECORD).is_file():
        others = sorted(path.parents[2].name for path in checkpoint.calib.glob(f"*/adapters/{name}/{RECORD}"))
        of = f" (one of that name is there of {', '.join(others)})" if others else ""
        raise UserError(f"{wanted} has no adapter {name!r}{of}; make one with {command}")
    record = records.read(AdapterRecord, place / RECORD)
    if record.variant != wanted:
        raise UserError(f"{place} was trained for {record.variant}; train one with {command}")
    if (record.weights, record.contents) != (checkpoint.identity, checkpoint.contents):
        older = "" if record.contents else ", or by a version that did not look at their content"
        raise UserError(f"{place} was trained on other weights{older}; train one with {command}")
    if record.compensation != overlay_digest(checkpoint, variant):
        raise UserError(f"{place} was trained on another compensation of {wanted}; train one with {command}")
    if file := altered(place, record):
        raise UserError(f"{file} is not what {RECORD} beside it describes; train it again with {command}")
    return place, record


def altered(place: Path, record: AdapterRecord) -> Path | None:
    """The first of an adapter's files that is missing or not what its record speaks for."""
    digests = {WEIGHTS: record.sha256, CONFIG: record.config_sha256}
    files = {place / name: digest for name, digest in digests.items() if digest is not None}
    return next((f for f, digest in files.items() if not f.is_file() or store.sha256(f) != digest), None)


def merge(checkpoint: Checkpoint, variant: Variant, name: str) -> Path:
    """Writes the touched tensors, W + BA in the checkpoint's own types, or finds them there.

    W is the checkpoint's, or what the variant's compensation folded into it.

    Raises:
        UserError: as `read`; or the adapter touches what the checkpoint does not hold.
    """
    place, record = read(checkpoint, variant, name)
    path = store.overlay_path(checkpoint.folder, replace(variant, adapter=name).name)
    if is_merged(path, record):
        return path
    from safetensors.torch import save_file

    tensors = _merged_tensors(checkpoint, variant, place)
    with store.atomic(path) as temporary:
        # One key only: safetensors writes several in an order that changes from run to run.
        save_file(tensors, temporary, metadata={"adapter": record.sha256})
    merged = MergedTensors(
        adapter=record.sha256,
        contents=str(record.contents),
        compensation=record.compensation,
        sha256=store.sha256(path, fresh=True),
    )
    store.write_json(store.sidecar_path(path), merged.plain())
    return path


def is_merged(path: Path, record: AdapterRecord) -> bool:
    """Whether a file holds the tensors of this adapter, merged into the weights that it was trained on."""
    known = records.read_if_valid(MergedTensors, store.sidecar_path(path))
    if known is None or not path.is_file() or not record.contents:
        return False
    wanted = {
        "adapter": record.sha256,
        "contents": record.contents,
        "compensation": record.compensation,
    }
    return known.matches({**wanted, "sha256": store.sha256(path)})


def _merged_tensors(checkpoint: Checkpoint, variant: Variant, place: Path) -> dict[str, torch.Tensor]:
    """Name → tensor, of the weights that the adapter in `place` changes: merged in fp32, rounded once."""
    layers = adapter_files.read(place, checkpoint)
    state = _merged_by_peft(checkpoint, variant, place, {layer.weight for layer in layers})
    tensors = {
        layer.weight: state[layer.weight].to(torch_dtype(checkpoint.tensors[layer.weight])).contiguous()
        for layer in layers
    }
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        kind = checkpoint.tensors[broken[0]].dtype
        raise UserError(
            f"{place}: {broken[0]} is not finite once it is merged in {kind}; train with a lower --lr"
        )
    overlay = compensation(checkpoint, variant)
    if all(tensor.equal(original(checkpoint, name, overlay)) for name, tensor in tensors.items()):
        raise UserError(f"{place} changes nothing: what it adds is lost when the weights are rounded")
    return tensors


def _merged_by_peft(
    checkpoint: Checkpoint, variant: Variant, place: Path, weights: set[str]
) -> dict[str, Any]:
    """The fp32 weights of the variant with the adapter in them.

    Raises:
        UserError: peft refuses it, or changes other weights than those that the adapter's file holds.
    """
    from peft import PeftModel

    from pipeline.models.reference import Reference

    overlay = compensation(checkpoint, variant)
    model = Reference(checkpoint.folder, variant.skip, overlays=[overlay] if overlay else []).model
    try:
        adapted = PeftModel.from_pretrained(model, str(place), local_files_only=True)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{place} cannot be applied: {first_line(error)}") from None
    touched = {
        f"{name.removeprefix('base_model.model.')}.weight"
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A")
    }
    if touched != weights:
        named = ", ".join(sorted(touched ^ weights)[:3])
        raise UserError(
            f"{place}: {WEIGHTS} and {CONFIG} do not name the same modules of {variant.skip.name} ({named})"
        )
    try:
        state: dict[str, Any] = adapted.merge_and_unload(safe_merge=True).state_dict()
    except ValueError as error:
        raise UserError(f"{place} cannot be merged: {first_line(error)}") from None
    return state


def prove(checkpoint: Checkpoint, variant: Variant, name: str, merged: Path) -> HealedProof | None:
    """Whether the tensors that a healed graph reads are W + scale · BA, computed here from the user's files.

    `merge` wrote them with peft, and the reference of a check reads them: this is what neither of them made.

    Returns:
        None where the adapter is no longer there.

    Raises:
        UserError: as `read`; or a tensor is another.
    """
    if not folder(checkpoint.calib, variant, name).is_dir():
        return None
    place, record = read(checkpoint, variant, name)
    overlay = compensation(checkpoint, variant)
    layers, worst = {layer.weight: layer for layer in adapter_files.read(place, checkpoint)}, 0.0
    with safetensors_index.opened(merged) as tensors:
        if set(tensors.keys()) != set(layers):
            raise UserError(
                f"{merged} does not hold the weights that {place} changes; remove it and export again"
            )
        for weight, layer in layers.items():
            distance, limit = _distance(
                original(checkpoint, weight, overlay), layer, tensors.get_tensor(weight)
            )
            worst = max(worst, distance)
            if not distance <= limit:
                raise UserError(
                    f"{merged}: {weight} is not what {place} makes of it; remove it and export again"
                )
    return HealedProof(adapter=record.sha256, tensors=len(layers), worst=worst)


def _distance(weight: torch.Tensor, layer: LoraLayer, merged: torch.Tensor) -> tuple[float, float]:
    """(max|difference| / rms between a merged weight and the product in fp64, its limit: one rounding)."""
    import torch

    product = weight.double() + layer.scale * (layer.up.double() @ layer.down.double())
    rms = product.square().mean().sqrt()
    distance = ((merged.double() - product).abs().max() / rms).item()
    rounding = torch.finfo(merged.dtype).eps / 2 * (product.abs().max() / rms).item()
    return distance, 1e-5 + 1.01 * rounding


def original(checkpoint: Checkpoint, name: str, overlay: Path | None = None) -> torch.Tensor:
    """A tensor as a variant has it before it is healed.

    Args:
        checkpoint: that holds it.
        name: as transformers' causal model has it.
        overlay: of a compensation, which may have folded something into it.
    """
    if overlay:
        with safetensors_index.opened(overlay) as tensors:
            if name in set(tensors.keys()):
                folded: torch.Tensor = tensors.get_tensor(name)
                return folded
    with safetensors_index.opened(checkpoint.folder / checkpoint.tensors[name].file) as tensors:
        tensor: torch.Tensor = tensors.get_tensor(in_file(name, set(tensors.keys())))
    return tensor
