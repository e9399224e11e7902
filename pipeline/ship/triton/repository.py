"""A model repository on disk: SHIP.json, what belongs to it, and whether it is still what was shipped."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline import __version__, store
from pipeline.store import records
from pipeline.store.records import ShippedFile, ShippedVersion, ShipRecord
from pipeline.types import UserError

RECORD = "SHIP.json"
ENDING = "_generate"
"""NAME's text model is called NAME_generate."""
TRITON = (
    "24.11 or newer (Python 3.11 in the server); "
    "tried with 2.51.0 (24.10) of the nvidia-pytriton wheel on Python 3.11"
)
NOT_CHECKED = (
    "anything on a GPU: plans, ONNX Runtime's CUDA provider",
    "Triton's own onnxruntime and tensorrt backends (`pipeline serve` has stand-ins)",
    "the docker command and NVIDIA's OpenAI frontend",
)
"""What no command of this project has checked on the machine that ships."""


def read_or_new(folder: Path) -> ShipRecord:
    """The repository's record; an empty one where the folder is new or empty.

    Raises:
        UserError: the folder holds something that `pipeline ship` did not write.
    """
    if (folder / RECORD).is_file():
        return read(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and holds no {RECORD}; ship into an empty or a new folder")
    fields = {"tool_version": __version__, "triton": TRITON, "not_checked": NOT_CHECKED}
    return ShipRecord.model_validate(fields)


def read(folder: Path) -> ShipRecord:
    """The record of a repository.

    Raises:
        UserError: there is none, or this version of `pipeline ship` did not write it.
    """
    path = folder / RECORD
    if not path.is_file():
        target = shlex.quote(str(folder))
        raise UserError(
            f"{folder} holds no {RECORD}; make the repository with `pipeline ship GRAPH --to triton {target}`"
        )
    try:
        return records.read(ShipRecord, path)
    except UserError as error:
        raise UserError(
            f"{path} was not written by this version of `pipeline ship` ({error}); ship into a new folder"
        ) from None


def newest(record: ShipRecord) -> dict[str, tuple[int, ShippedVersion]]:
    """NAME → (its newest version, what was shipped)."""
    served = {}
    for name, model in record.models.items():
        version = max(map(int, model.versions))
        served[name] = version, model.versions[str(version)]
    return served


def digests(
    root: Path, *folders: Path, known: Mapping[str, ShippedFile] | None = None
) -> dict[str, ShippedFile]:
    """Path under `root` → digest and size, for every file in the folders; those known are not read again."""
    files = dict(known or {})
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        name = str(path.relative_to(root))
        if name not in files:
            files[name] = ShippedFile(sha256=store.sha256(path), bytes=path.stat().st_size)
    return files


def verify(folder: Path, record: ShipRecord, versions: Iterable[ShippedVersion] | None = None) -> None:
    """Hashes versions and compares them with what was shipped. config.pbtxt is the user's to change.

    Args:
        folder: the repository.
        record: its SHIP.json.
        versions: those to hash; by default the newest of each model.

    Raises:
        UserError: a file is missing or is not what was shipped.
    """
    if versions is None:
        versions = [version for _, version in newest(record).values()]
    files = {name: file for version in versions for name, file in version.files.items()}
    for name, file in files.items():
        path = folder / name
        same_size = path.is_file() and path.stat().st_size == file.bytes
        if not same_size or store.sha256(path) != file.sha256:
            raise UserError(f"{path} is not what was shipped; remove {folder} and ship again")
