"""Adapters that peft makes, sealed as if `heal` had trained them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.calib import adapters
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.reference import Reference
from pipeline.store.records import AdapterRecord, HealLosses, HealSettings, TextSource
from pipeline.types import SkipSet, Variant

SKIP = SkipSet.parse("block2")
VARIANT = Variant("tiny", SKIP)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make(checkpoint: Checkpoint, variant: Variant = VARIANT, **settings: Any) -> Path:
    """A random adapter of block2 or a compensation of it, as peft saves it; settings of LoraConfig."""
    torch.manual_seed(0)
    chosen = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **settings}
    model = get_peft_model(
        Reference(checkpoint.folder, SKIP).model, LoraConfig(task_type="CAUSAL_LM", **chosen)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    place = adapters.folder(checkpoint.calib, variant, "heal")
    shutil.rmtree(place, ignore_errors=True)
    model.save_pretrained(str(place))
    return seal(checkpoint, place, variant)


def seal(checkpoint: Checkpoint, place: Path, variant: Variant = VARIANT) -> Path:
    """Writes the record that says this is an adapter of these weights."""
    overlay = adapters.compensation(checkpoint, variant)
    record = AdapterRecord(
        model=checkpoint.model,
        variant=variant.name,
        weights=checkpoint.identity,
        contents=checkpoint.contents,
        compensation=store.sha256(overlay) if overlay else None,
        settings=HealSettings(),
        texts=TextSource(origin="words"),
        held_out_loss=HealLosses(base=1.0, before=2.0, after=1.5),
        healed_share=0.5,
        sha256=store.sha256(place / WEIGHTS),
    )
    store.write_json(place / adapters.RECORD, record.plain())
    return place


def configure(place: Path, **changes: Any) -> None:
    """Changes adapter_config.json."""
    file = place / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rewrite(checkpoint: Checkpoint, place: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other tensors, with a record that agrees."""
    save_file(tensors, place / WEIGHTS)
    seal(checkpoint, place)


def tensors(place: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors."""
    return dict(load_file(place / WEIGHTS))


def by_peft(checkpoint: Checkpoint, place: Path) -> dict[str, torch.Tensor]:
    """All fp32 weights of block2 with the adapter merged by peft."""
    adapted = PeftModel.from_pretrained(Reference(checkpoint.folder, SKIP).model, str(place))
    state: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return state
