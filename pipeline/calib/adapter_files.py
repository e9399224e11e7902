"""A LoRA adapter's two files as peft writes them: what each layer adds, read strictly and without peft.

peft passes over names that do not fit with a warning, takes zeros for layers that the file lacks, and applies
what a graph of merged weights cannot hold (biases, whole modules). Here each of them is refused by name.

Legend: R rank, I inputs, O outputs of a linear module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models import safetensors_index
from pipeline.models.checkpoint import Checkpoint
from pipeline.store import records
from pipeline.types import TensorSlice, UserError, shown

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_USED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
"""Settings that say what a layer adds."""
_TO_FIND = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
"""Settings that say which modules peft changes; the file's tensors say so too, and both must agree."""
_NO_CHANGE = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
"""Settings that change nothing of a merged weight."""
_OFF: tuple[object, ...] = (None, False, "none", {}, [])


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """What an adapter adds to one weight: scale · up @ down.

    Attributes:
        weight: name of the checkpoint's tensor, [O, I].
        down: [R, I], fp32; peft's lora_A.
        up: [O, R], fp32; peft's lora_B.
        scale: alpha / R, or alpha / √R (Kalajdzievski 2023, arXiv:2312.03732).
    """

    weight: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float


def read(place: Path, checkpoint: Checkpoint) -> list[LoraLayer]:
    """All layers of an adapter.

    Raises:
        UserError: a setting that merged weights cannot hold, a tensor that does not fit the checkpoint, has
            no partner, or is not finite; or nothing that changes a weight.
    """
    settings = _settings(place / CONFIG)
    file = place / WEIGHTS
    index = safetensors_index.read_index([file])
    modules = _pairs(file, index)
    _refuse_misfits(file, modules, index, checkpoint)
    layers = list(_layers(file, modules, settings))
    if not layers:
        raise UserError(f"{file} holds no layer: it changes nothing")
    if not any(layer.down.any() and layer.up.any() and layer.scale for layer in layers):
        raise UserError(f"{place} changes nothing: its products of lora_B and lora_A are all zero")
    return layers


def _settings(file: Path) -> dict[str, Any]:
    settings = records.read_object(file)
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{file}: peft_type is {settings.get('peft_type')!r:.40}; LORA alone can be merged here"
        )
    for name, value in settings.items():
        is_plain_start = name == "init_lora_weights" and value in (True, False, "gaussian")
        if name in _USED | _TO_FIND | _NO_CHANGE or value in _OFF or is_plain_start:
            continue
        raise UserError(
            f"{file}: {name} is {value!r:.80}, which cannot be merged here; "
            "train with `pipeline heal`, or merge it into the model with peft and export that"
        )
    numbers = [settings.get("r", 8), *_pattern(settings, "rank_pattern").values()]
    alphas = [settings.get("lora_alpha", 8), *_pattern(settings, "alpha_pattern").values()]
    if not all(type(rank) is int and rank > 0 for rank in numbers):
        raise UserError(f"{file}: a rank (r, rank_pattern) is no whole number above 0")
    if not all(type(alpha) in (int, float) and math.isfinite(alpha) for alpha in alphas):
        raise UserError(f"{file}: lora_alpha or a value of alpha_pattern is no finite number")
    return settings


def _pattern(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    pattern = settings.get(name) or {}
    if not isinstance(pattern, dict):
        raise UserError(f"{CONFIG}: {name} is no object")
    return pattern


def _of_module(settings: Mapping[str, Any], pattern: str, module: str, default: Any) -> Any:
    """A module's own value: that of the first key which is the end of its name, as a regular expression."""
    for key, value in _pattern(settings, pattern).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise UserError(f"{CONFIG}: {pattern}: {key!r:.80} is no pattern ({error})") from None
    return default


def _pairs(file: Path, index: Mapping[str, TensorSlice]) -> dict[str, dict[str, str]]:
    """Module → side ('A', 'B') → name of the tensor."""
    matches = {name: _NAME.fullmatch(name) for name in index}
    _refuse_some(
        file, [name for name, match in matches.items() if not match], "no lora_A or lora_B of a module"
    )
    modules: dict[str, dict[str, str]] = {}
    for name, match in matches.items():
        assert match is not None
        modules.setdefault(match["module"], {})[match["side"]] = name
    _refuse_some(
        file, [module for module, pair in modules.items() if len(pair) < 2], "without its lora_A or lora_B"
    )
    return modules


def _refuse_misfits(
    file: Path,
    modules: Mapping[str, dict[str, str]],
    index: Mapping[str, TensorSlice],
    checkpoint: Checkpoint,
) -> None:
    """Refuses names and shapes that are not the checkpoint's."""
    known = checkpoint.tensors
    absent = [module for module in modules if f"{module}.weight" not in known]
    _refuse_some(file, absent, f"which {checkpoint.folder} does not hold under that name")
    misfits = []
    for module, pair in modules.items():
        down, up, weight = index[pair["A"]].shape, index[pair["B"]].shape, known[f"{module}.weight"].shape
        if not (len(down) == len(up) == len(weight) == 2 and up[1] == down[0]) or (up[0], down[1]) != weight:
            misfits.append(f"{module} ({list(up)} · {list(down)} for {list(weight)})")
    _refuse_some(file, misfits, f"which does not fit the weights of {checkpoint.folder}")


def _refuse_some(file: Path, names: list[str], why: str) -> None:
    if names:
        raise UserError(f"{file} holds {shown(sorted(names))}, {why}")


def _layers(
    file: Path, modules: Mapping[str, dict[str, str]], settings: Mapping[str, Any]
) -> Iterator[LoraLayer]:
    with safetensors_index.opened(file) as tensors:
        for module, pair in sorted(modules.items()):
            down, up = (tensors.get_tensor(pair[side]).float() for side in "AB")
            if not (down.isfinite().all() and up.isfinite().all()):
                raise UserError(f"{file}: {module} holds NaN or infinity; train it again")
            rank = _of_module(settings, "rank_pattern", module, settings.get("r", 8))
            if rank != len(down):
                raise UserError(f"{file}: {module} has the rank {len(down)}, and {CONFIG} says {rank}")
            alpha = _of_module(settings, "alpha_pattern", module, settings.get("lora_alpha", 8))
            scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
            yield LoraLayer(f"{module}.weight", down, up, scale)
