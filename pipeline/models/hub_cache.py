"""The cache that huggingface_hub and transformers share: snapshots that were fetched before, by id or path.

A snapshot is a folder of links to blobs that may only be read; what is taken from one is a plain copy.
Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.models import unusable, weight_files
from pipeline.store import records
from pipeline.types import UserError, shown

DOWNLOADS = Path(".cache", "huggingface")
"""Where huggingface_hub notes, within a folder, what it downloads into it."""
_REPO = re.compile(r"models--(?P<repo>[\w.-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository in the cache.

    Attributes:
        repo: org/name, or a name alone.
        revision: its commit.
        folder: where its links lie.
    """

    repo: str
    revision: str
    folder: Path

    @property
    def name(self) -> str:
        """The model's name."""
        return self.repo.split("/")[-1]

    @property
    def origin(self) -> str:
        """What source.json says of it: org/name@commit."""
        return f"{self.repo}@{self.revision}"

    def etags(self) -> dict[str, str]:
        """File → the hub's digest of it, by which its blob is named."""
        links = [file for file in self.folder.iterdir() if file.is_symlink()]
        return {file.name: file.readlink().name for file in links}


def snapshot_at(path: Path) -> Snapshot | None:
    """The snapshot that a folder is; of a repository's whole folder, that of its main branch.

    Args:
        path: `…/models--org--name/snapshots/<commit>`, a link to one, or `…/models--org--name`.
    """
    folder = path.resolve()
    if _REPO.fullmatch(folder.name) and (main := _commit(folder, "main")):
        folder = folder / "snapshots" / main
    repo = _REPO.fullmatch(folder.parent.parent.name)
    if repo is None or folder.parent.name != "snapshots" or not folder.is_dir():
        return None
    return Snapshot(repo["repo"].replace("--", "/"), folder.name, folder)


def name_of(folder: Path) -> str:
    """The model's name that a folder gives: its own; that of the repository where it is a snapshot."""
    return snapshot.name if (snapshot := snapshot_at(folder)) else folder.resolve().name


def find(repo: str, revision: str = "main") -> Snapshot | None:
    """What the cache has of a repository, where it has it.

    Args:
        repo: org/name.
        revision: a commit, a branch or a tag.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"
    commit = revision if _COMMIT.fullmatch(revision) else _commit(folder, revision)
    snapshot = folder / "snapshots" / commit if commit else None
    return Snapshot(repo, snapshot.name, snapshot) if snapshot and snapshot.is_dir() else None


def refuse_incomplete(snapshot: Snapshot) -> None:
    """Refuses a snapshot of which the cache has a part alone: other programs fetch what they need.

    Raises:
        UserError: it lacks the config, weights, or what one of its links leads to; says how they are fetched.
    """
    files = list(snapshot.folder.iterdir())
    absent = {file.name for file in files if not file.exists()}
    if not (snapshot.folder / "config.json").is_file():
        absent.add("config.json")
    index = snapshot.folder / weight_files.INDEX
    if not (snapshot.folder / weight_files.ONE_FILE).exists() and index.is_file():
        absent |= {name for name in weight_files.shards(index) if not (snapshot.folder / name).is_file()}
    elif not any(file.suffix in unusable.WEIGHT_SUFFIXES for file in files):
        absent.add(weight_files.ONE_FILE)
    if absent:
        command = f"hf download {snapshot.repo} --revision {snapshot.revision}"
        raise UserError(
            f"{snapshot.folder} lacks {shown(sorted(absent))}: the hub's cache holds only a part of "
            f"{snapshot.repo}; fetch the rest with `{command}`"
        )


def _commit(folder: Path, reference: str) -> str | None:
    """The commit of a branch or a tag."""
    file = folder / "refs" / reference
    if ".." in Path(reference).parts or not file.is_file():
        return None
    commit = records.read_bytes(file).decode(errors="replace")[:100].strip()
    return commit if re.fullmatch(r"[\w.-]+", commit) and ".." not in commit else None
