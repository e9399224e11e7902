"""A model repository on disk: SHIP.json, what belongs to it, and whether it is still what was shipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import __version__, store
from pipeline.types import UserError

MANIFEST = "SHIP.json"
TRITON = "24.11 or newer (Python 3.11 in the server); tried with 2.51.0 (24.10) of the nvidia-pytriton wheel on Python 3.11"
NOT_CHECKED = (
    "anything on a GPU: plans, ONNX Runtime's CUDA provider",
    "Triton's own onnxruntime and tensorrt backends (`pipeline serve` has stand-ins)",
    "the docker command and NVIDIA's OpenAI frontend",
)
"""What no command of this project has checked on the machine that ships."""


def open_or_new(folder: Path) -> dict[str, Any]:
    """The repository's manifest, or that of an empty one.

    Raises:
        UserError: the folder holds something that is no repository of ours.
    """
    if (folder / MANIFEST).is_file():
        return read(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and holds no {MANIFEST}; ship into an empty or a new folder")
    told = {"triton": TRITON, "not_checked": list(NOT_CHECKED)}
    return {"what": "ship", "format": 1, "skip-pipeline": __version__, **told, "models": {}}


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a repository.

    Raises:
        UserError: there is none, or it was not written by `pipeline ship`.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no {MANIFEST}; make the repository with `pipeline ship GRAPH --to triton {folder}`"
        )
    manifest = store.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("what") != "ship" or manifest.get("format") != 1:
        raise UserError(
            f"{folder / MANIFEST} was not written by this version of `pipeline ship`; ship into a new folder"
        )
    return manifest


def newest(manifest: dict[str, Any]) -> dict[str, tuple[int, dict[str, Any]]]:
    """NAME → (the version that is served, what the manifest says of it)."""
    found = {}
    for name, model in manifest["models"].items():
        version = max(map(int, model["versions"]))
        found[name] = version, model["versions"][str(version)]
    return found


def served(manifest: dict[str, Any]) -> list[str]:
    """The Triton models in it."""
    return [
        model
        for name, (_, told) in newest(manifest).items()
        for model in ([name] if told["raw_model"] else []) + [f"{name}_generate"]
    ]


def digests(root: Path, *folders: Path) -> dict[str, Any]:
    """Path under `root` → SHA-256 and size, of every file in the folders."""
    files = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(root)): {"sha256": store.sha256(path), "bytes": path.stat().st_size}
        for path in files
    }


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Hashes what is served and compares it with the manifest; config.pbtxt is the user's to change.

    Raises:
        UserError: a file is missing or is not what was shipped.
    """
    for _, told in newest(manifest).values():
        for name, entry in told["files"].items():
            path = folder / name
            if (
                not path.is_file()
                or path.stat().st_size != entry["bytes"]
                or store.sha256(path) != entry["sha256"]
            ):
                raise UserError(f"{path} is not what was shipped; remove {folder} and ship again")


def install(staging: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Moves a staged repository into place: at once where there was none, else version by version, SHIP.json last."""
    if not folder.exists() or not any(folder.iterdir()):
        store.write_json(staging / MANIFEST, manifest)
        staging.chmod(0o755)
        staging.replace(folder)
        return
    before = read(folder)
    for version in _versions(folder):  # of a ship that was killed here: no manifest names them
        if version.name not in before["models"].get(_variant(version.parent.name, before), {}).get(
            "versions", {}
        ):
            shutil.rmtree(version)
    for version in _versions(staging):
        (folder / version.parent.name).mkdir(exist_ok=True)
        version.replace(folder / version.parent.name / version.name)
    for file in [*staging.glob("*/configs/*.pbtxt"), *staging.glob("*/config.pbtxt"), *staging.glob("*.md")]:
        target = folder / file.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        with store.atomic(target) as temporary:
            shutil.copyfile(file, temporary)
    store.write_json(folder / MANIFEST, manifest)


def _versions(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.glob("*/*")) if path.is_dir() and path.name.isdigit())


def _variant(model: str, manifest: dict[str, Any]) -> str:
    """The NAME that a Triton model belongs to."""
    return next(
        (name for name, told in manifest["models"].items() if model in (name, told["generate"])), model
    )
