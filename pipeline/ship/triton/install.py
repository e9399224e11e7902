"""A staged repository, moved into place so that a kill at any moment leaves one that loads and verifies.

The order: whole versions, their configs/vN.pbtxt, SHIP.json, and only then each config.pbtxt. What Triton is
told to serve is therefore always in SHIP.json, and complete. SHIP.json is the switch; `switching` in it says
that the configs that follow it may not all be there yet.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline import store
from pipeline.ship.triton import page, repository
from pipeline.ship.triton.repository import ENDING, RECORD
from pipeline.store.records import ShipRecord


def install(staging: Path, folder: Path, record: ShipRecord) -> ShipRecord:
    """Moves a staged repository into place. Call it under the repository's lock.

    A new folder appears at once. An existing one gets the new versions, and then is switched to them.

    Args:
        staging: what is new, on the same disk: versions, configs.
        folder: the repository.
        record: SHIP.json as it shall be.

    Returns:
        SHIP.json as it is now.
    """
    page.write(staging, record)
    _sync(staging)
    if not folder.exists() or not any(folder.iterdir()):
        store.write_json(staging / RECORD, record.plain())
        staging.chmod(0o755)
        staging.replace(folder)
        return record
    _sweep(folder)
    versions = list(_versions(staging))
    for version in versions:
        (folder / version.parent.name).mkdir(exist_ok=True)
        version.replace(folder / version.parent.name / version.name)
    for file in staging.glob("*/configs/*.pbtxt"):
        _put(file, folder / file.relative_to(staging))
    new = {version.parent.name.removesuffix(ENDING) for version in versions}
    record = record.replaced(switching=tuple(sorted({*record.switching, *new})))
    store.write_json(folder / RECORD, record.plain())
    return finish(folder, record)


def finish(folder: Path, record: ShipRecord) -> ShipRecord:
    """Writes what follows the switch; also after a `ship` that was killed there. Call it under the lock.

    Args:
        folder: the repository.
        record: its SHIP.json.

    Returns:
        SHIP.json as it is now.
    """
    for name, (number, version) in repository.newest(record).items():
        if name in record.switching:
            for model in [name, name + ENDING] if version.raw_model else [name + ENDING]:
                _put(folder / model / "configs" / f"v{number}.pbtxt", folder / model / "config.pbtxt")
    page.write(folder, record)
    record = record.replaced(switching=())
    store.write_json(folder / RECORD, record.plain())
    return record


def _put(file: Path, target: Path) -> None:
    with store.atomic(target) as temporary:
        shutil.copyfile(file, temporary)


def _sync(staging: Path) -> None:
    """Brings every file to the disk: after a power cut, what SHIP.json names must be whole."""
    for path in [staging, *staging.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(folder: Path) -> None:
    """Removes what a killed `ship` left: temporary files, and versions that SHIP.json does not name.

    No config.pbtxt names such a version.
    """
    recorded = {
        (model, number)
        for name, shipped in repository.read(folder).models.items()
        for model in (name, shipped.generate)
        for number in shipped.versions
    }
    for version in _versions(folder):
        if (version.parent.name, version.name) not in recorded:
            shutil.rmtree(version)
    for temporary in (path for depth in (".", "*", "*/configs") for path in folder.glob(f"{depth}/.*.tmp")):
        temporary.unlink(missing_ok=True)


def _versions(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.glob("*/*")) if path.is_dir() and path.name.isdigit())
