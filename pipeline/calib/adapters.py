"""LoRA adapters that heal a variant: where they lie, what they were trained for, and their merged weights.

An adapter lies in calib/<model>/<variant>/adapters/<name>/ in peft's own layout, with `heal.json` beside it.
A merge writes only the tensors that it touched, once, to graphs/<model>/<variant>~<name>.safetensors; graphs
of both precisions point there.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.models.checkpoint import Checkpoint
from pipeline.store import records
from pipeline.store.records import AdapterRecord, MergedTensors
from pipeline.types import SkipSet, TensorSlice, UserError, Variant

if TYPE_CHECKING:
    import torch

RECORD = "heal.json"
WEIGHTS = "adapter_model.safetensors"


def folder(calib: Path, skip: SkipSet, name: str) -> Path:
    """calib/<model>/<variant>/adapters/<name>, with `calib` for calib/<model>."""
    return calib / store.plain_name(skip.name) / "adapters" / store.plain_name(name)


def read(checkpoint: Checkpoint, skip: SkipSet, name: str) -> tuple[Path, AdapterRecord]:
    """The adapter's folder and its record, after a check that it was made for this variant of these weights.

    Raises:
        UserError: there is none, it is not finished, it is of another variant or of other weights, or it was
            changed.
    """
    place = folder(checkpoint.calib, skip, name)
    graph = store.graph_path(checkpoint.folder, Variant(checkpoint.model, skip))
    command = f"`pipeline heal {shlex.quote(str(graph))} --name {shlex.quote(name)}`"
    if not (place / RECORD).is_file():
        others = sorted(path.parents[2].name for path in checkpoint.calib.glob(f"*/adapters/{name}/{RECORD}"))
        of = f" (one of that name is there of {', '.join(others)})" if others else ""
        raise UserError(f"{skip.name} has no adapter {name!r}{of}; make one with {command}")
    record = records.read(AdapterRecord, place / RECORD)
    if record.variant != skip.name:
        raise UserError(f"{place} was trained for {record.variant}; train one with {command}")
    if (record.weights, record.contents) != (checkpoint.identity, checkpoint.contents):
        older = "" if record.contents else ", or by a version that did not look at their content"
        raise UserError(f"{place} was trained on other weights{older}; train one with {command}")
    weights = place / WEIGHTS
    if not weights.is_file() or store.sha256(weights) != record.sha256:
        raise UserError(f"{weights} is not what {RECORD} beside it describes; train it again with {command}")
    return place, record


def merge(checkpoint: Checkpoint, skip: SkipSet, name: str) -> Path:
    """Writes the touched tensors, W + BA in the checkpoint's own types, or finds them there.

    Raises:
        UserError: as `read`; or the adapter touches what the checkpoint does not hold.
    """
    place, record = read(checkpoint, skip, name)
    path = store.healed_path(checkpoint.folder, Variant(checkpoint.model, skip, adapter=name).name)
    if is_merged(path, record):
        return path
    from safetensors.torch import save_file

    tensors = _merged_tensors(checkpoint, skip, place)
    with store.atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"adapter": record.sha256, "format": "pt"})
    merged = MergedTensors(
        adapter=record.sha256, contents=str(record.contents), sha256=store.sha256(path, fresh=True)
    )
    store.write_json(store.sidecar_path(path), merged.plain())
    return path


def is_merged(path: Path, record: AdapterRecord) -> bool:
    """Whether a file holds the tensors of this adapter, merged into the weights that it was trained on."""
    known = records.read_if_valid(MergedTensors, store.sidecar_path(path))
    if known is None or not path.is_file() or not record.contents:
        return False
    wanted = {"adapter": record.sha256, "contents": record.contents}
    return known.matches({**wanted, "sha256": store.sha256(path)})


def _merged_tensors(checkpoint: Checkpoint, skip: SkipSet, place: Path) -> dict[str, torch.Tensor]:
    """Name → tensor, of the weights that the adapter in `place` changes."""
    from peft import PeftModel

    from pipeline.models.reference import Reference

    model = PeftModel.from_pretrained(
        Reference(checkpoint.folder, skip).model, str(place), local_files_only=True
    )
    touched = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    state = model.merge_and_unload(safe_merge=True).state_dict()
    tensors = {}
    for module in sorted(touched):
        name = f"{module}.weight"
        if name not in checkpoint.tensors:
            raise UserError(f"{place} touches {module}, which the checkpoint does not hold under that name")
        tensors[name] = state[name].to(_dtype(checkpoint.tensors[name])).contiguous()
    return tensors


def _dtype(tensor: TensorSlice) -> torch.dtype:
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]
