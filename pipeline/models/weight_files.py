"""Which safetensors files of a folder are its weights: those that transformers loads, and no others.

The order is transformers' own (`modeling_utils._get_resolved_checkpoint_files`): the file that config.json
names as `transformers_weights`, else model.safetensors, else the shards of its index.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models import unusable
from pipeline.models.safetensors_index import MAX_TENSORS
from pipeline.store import records
from pipeline.types import UserError, shown

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"


class ShardIndex(records.Record):
    """model.safetensors.index.json: the file that holds each tensor."""

    weight_map: dict[str, str] = {}  # noqa: RUF012 - pydantic copies a field's default
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a checkpoint's weights.

    Attributes:
        files: safetensors.
        index: the JSON that names them, where there is one.
        named: the tensors that it names; those of a single file have no such list.
        others: further weights in the folder, which are not taken.
    """

    files: tuple[Path, ...]
    index: Path | None
    named: frozenset[str] | None
    others: tuple[str, ...]

    def word(self) -> str | None:
        """What a user should know: that one of several sets of weights was taken. None where there is one."""
        if not self.others:
            return None
        taken = f"the shards of {self.index.name}" if self.index else self.files[0].name
        return (
            f"{self.files[0].parent}: taking {taken}, as transformers does; not taken: {shown(self.others)}"
        )


def find(folder: Path) -> WeightFiles:
    """The weights in a folder.

    Raises:
        UserError: a file that is named is missing or lies elsewhere, or there are no safetensors weights;
            says what there is instead.
    """
    chosen = _explicit(folder) or (ONE_FILE if (folder / ONE_FILE).is_file() else INDEX)
    if chosen.endswith(".index.json"):
        index = folder / chosen
        if not index.is_file():
            unusable.refuse_without_weights(folder)
        files, named = _shards(index)
    else:
        index, files, named = None, [folder / chosen], None
    taken = {file.name for file in files} | ({index.name} if index else set())
    return WeightFiles(tuple(files), index, named, tuple(_others(folder, taken)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; raises as `find`."""
    return list(find(folder).files)


def refuse_without_metadata(index: Path) -> None:
    """Refuses an index that transformers stumbles over (`utils.hub.get_checkpoint_shard_files`).

    Raises:
        UserError: it lacks a key that no graph needs.
    """
    if records.read(ShardIndex, index).metadata is None:
        raise UserError(
            f'{index} has no "metadata", without which transformers loads nothing; add "metadata": {{}} to it'
        )


def _explicit(folder: Path) -> str | None:
    """The file that config.json names as its weights."""
    config = folder / "config.json"
    name = records.read_object(config).get("transformers_weights") if config.is_file() else None
    if name is None:
        return None
    is_plain = isinstance(name, str) and Path(name).name == name
    if not is_plain or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise UserError(f"{config}: transformers_weights is {name!r:.60}, not the name of a safetensors file")
    if not (folder / name).is_file():
        raise UserError(f"{config}: transformers_weights names {name}, which {folder} does not hold")
    return str(name)


def shards(index: Path) -> list[str]:
    """The names of the files that an index names."""
    return sorted(set(records.read(ShardIndex, index).weight_map.values()))


def _shards(index: Path) -> tuple[list[Path], frozenset[str]]:
    """The files that an index names, and the tensors."""
    record = records.read(ShardIndex, index)
    if len(record.weight_map) > MAX_TENSORS:
        raise UserError(
            f"{index} names {len(record.weight_map)} tensors; {MAX_TENSORS} is the most that is read"
        )
    names = sorted(set(record.weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r:.200}, outside its folder; refused")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name:.200}, which is missing; download the checkpoint again")
    if not names:
        raise UserError(f"{index} names no tensor; download the checkpoint again")
    return [index.parent / name for name in names], frozenset(record.weight_map)


def _others(folder: Path, taken: set[str]) -> list[str]:
    """Weights of other forms that lie beside those that are taken; variants' own tensors are none."""
    patterns = ("model*.safetensors", "model*.safetensors.index.json", "consolidated*", "pytorch_model*")
    names = {file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sorted(names - taken)
