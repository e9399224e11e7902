"""LoRA adapters that heal a variant: where they lie, whose they are, and their merged weights.

An adapter lies in calib/<model>/<variant>/adapters/<name>/ in peft's own layout, with `heal.json` beside it. Merged, only
the tensors that it touched are written, once, to graphs/<model>/<variant>~<name>.safetensors; graphs of both precisions
point there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.calib import similarity
from pipeline.models import safetensors_index
from pipeline.models.checkpoint import Checkpoint
from pipeline.types import SkipSet, TensorSlice, UserError, Variant

RECORD = "heal.json"


def folder(model: str, skip: SkipSet, name: str) -> Path:
    """calib/<model>/<variant>/adapters/<name>"""
    return store.calib_dir(model) / store.plain_name(skip.name) / "adapters" / store.plain_name(name)


def read(checkpoint: Checkpoint, skip: SkipSet, name: str) -> tuple[Path, dict[str, Any]]:
    """(the adapter's folder, its record), after a check that it was made for this variant of these weights.

    Raises:
        UserError: there is none, it is not finished, it is of another variant or of other weights, or it was changed.
    """
    place = folder(checkpoint.model, skip, name)
    command = f"`pipeline heal graphs/{checkpoint.model}/{skip.name}.fp32.onnx --name {name}`"
    if not (place / RECORD).is_file():
        others = [
            p.parent.parent.parent.name
            for p in store.calib_dir(checkpoint.model).glob(f"*/adapters/{name}/{RECORD}")
        ]
        of = f" (one of that name is there of {', '.join(sorted(others))})" if others else ""
        raise UserError(f"{skip.name} has no adapter {name!r}{of}; make one with {command}")
    record = store.read_json(place / RECORD)
    if record.get("variant") != skip.name or record.get("weights") != similarity.identity(checkpoint):
        raise UserError(
            f"{place} was trained for {record.get('variant')} of other weights or another variant; train one with {command}"
        )
    weights = place / "adapter_model.safetensors"
    if not weights.is_file() or store.sha256(weights) != record.get("sha256"):
        raise UserError(f"{weights} is not what {RECORD} beside it describes; train it again with {command}")
    return place, record


def merge(checkpoint: Checkpoint, skip: SkipSet, name: str) -> Path:
    """Writes the touched tensors, W + BA in the checkpoint's own types, or finds them there.

    Raises:
        UserError: as `read`; or the adapter touches what the checkpoint does not hold.
    """
    place, record = read(checkpoint, skip, name)
    path = store.healed_path(checkpoint.folder, Variant(checkpoint.model, skip, adapter=name).name)
    if path.is_file() and merged_from(path) == record["sha256"]:
        return path
    from peft import PeftModel
    from safetensors.torch import save_file

    from pipeline.models.reference import Reference

    model = PeftModel.from_pretrained(
        Reference(checkpoint.folder, skip).model, str(place), local_files_only=True
    )
    touched = {_plain(key) for key, value in model.named_modules() if hasattr(value, "lora_A")}
    state = model.merge_and_unload(safe_merge=True).state_dict()
    held = {}
    for module in sorted(touched):
        tensor = checkpoint.tensors.get(f"{module}.weight")
        if tensor is None:
            raise UserError(f"{place} touches {module}, which the checkpoint does not hold under that name")
        held[f"{module}.weight"] = state[f"{module}.weight"].to(_dtype(tensor)).contiguous()
    with store.atomic(path) as temporary:
        save_file(held, temporary, metadata={"adapter": record["sha256"], "format": "pt"})
    return path


def merged_from(path: Path) -> str | None:
    """The SHA-256 of the adapter that a file of merged tensors was made of."""
    header = json.loads(safetensors_index.header_bytes(path)[8:])
    found = header.get("__metadata__", {}).get("adapter")
    return found if isinstance(found, str) else None


def _plain(module: str) -> str:
    return module.removeprefix("base_model.model.")


def _dtype(tensor: TensorSlice) -> Any:
    import torch

    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]
