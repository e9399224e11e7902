"""The cache that huggingface_hub and transformers share: snapshots that were fetched before, by id or path.

A snapshot is a folder of links to blobs that may only be read; what is taken from one is a plain copy.
Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

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


def _commit(folder: Path, reference: str) -> str | None:
    """The commit of a branch or a tag."""
    file = folder / "refs" / reference
    if ".." in Path(reference).parts or not file.is_file():
        return None
    commit = file.read_text(errors="replace")[:100].strip()
    return commit if re.fullmatch(r"[\w.-]+", commit) and ".." not in commit else None
