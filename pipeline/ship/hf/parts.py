"""The tensors of a folder, by the file that each goes into; a file of the source may stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.models import safetensors_index
from pipeline.ship.pruned import Array, StoredTensor


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor that lies nowhere yet.

    Attributes:
        dtype: as safetensors calls it.
        shape: sizes of its axes.
        array: computes it.
    """

    dtype: str
    shape: tuple[int, ...]
    array: Callable[[], Array]


Tensor = StoredTensor | Computed


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """One tensor of the folder.

    Attributes:
        name: there.
        tensor: where it lies now.
        home: the source's file that it, or what it replaces, is of; None of what is new.
    """

    name: str
    tensor: Tensor
    home: Path | None

    @property
    def dtype(self) -> str:
        """As safetensors calls it."""
        return self.tensor.slice.dtype if isinstance(self.tensor, StoredTensor) else self.tensor.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.tensor.shape) * safetensors_index.ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the folder.

    Attributes:
        parts: its tensors.
        whole: a file of the source that holds just these, under these names.
    """

    parts: tuple[WrittenTensor, ...]
    whole: Path | None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(part.nbytes for part in self.parts)


def shards(parts: Iterable[WrittenTensor], files: Sequence[Path]) -> list[Shard]:
    """The files of the folder, none with more tensors' bytes than the largest of the source has bytes.

    Args:
        parts: the tensors.
        files: of the source's weights.
    """
    limit = max(file.stat().st_size for file in files)
    last = files[0] if len(files) == 1 else None  # beside others, what is new gets a file of its own
    groups: dict[Path | None, list[WrittenTensor]] = {file: [] for file in (*files, last)}
    for part in parts:
        groups[part.home or last].append(part)
    split = [shard for group in groups.values() for shard in _split(group, limit)]
    return [Shard(tuple(group), _whole(group)) for group in split]


def _split(group: Sequence[WrittenTensor], limit: int) -> list[list[WrittenTensor]]:
    """The group in pieces of at most so many bytes, or of one tensor."""
    pieces: list[list[WrittenTensor]] = []
    size = 0
    for part in group:
        if not pieces or size + part.nbytes > limit:
            pieces.append([])
            size = 0
        pieces[-1].append(part)
        size += part.nbytes
    return pieces


def _whole(group: Sequence[WrittenTensor]) -> Path | None:
    """The file that holds just these tensors, under these names."""
    home = group[0].home
    if home is None:
        return None
    stay = all(isinstance(part.tensor, StoredTensor) and part.tensor.file == home for part in group)
    names = set(safetensors_index.read_index([home])) if stay else set()
    return home if names == {part.name for part in group} else None


def file_names(shards: Sequence[Shard]) -> Mapping[str, Shard]:
    """What transformers calls the files: model.safetensors, or model-00001-of-00002.safetensors and so on."""
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}
