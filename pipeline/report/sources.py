"""The files that numbers were read from, and where their copies lie inside the report."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.store import Project

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that numbers were read from.

    Attributes:
        path: where it lies.
        name: the same path, relative to the project, with slashes.
        copy: path of its copy, relative to the report's folder; links point at it.
        sha256: of its content.
    """

    path: Path
    name: str
    copy: str
    sha256: str

    @classmethod
    def of(cls, path: Path, content: bytes, project: Project) -> SourceFile:
        """The file at `path`, which has this content."""
        relative = path.relative_to(project.root)
        copy = "/".join(("sources", *map(slug, relative.parts)))
        return cls(path, shown_path(path, project), copy, hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class Sourced(Generic[Content]):
    """A record, or a part of one, with the file that it was read from."""

    record: Content
    source: SourceFile


def shown_path(path: Path, project: Project) -> str:
    """A file's path in the project, with slashes, as text: bytes that are no UTF-8 stand escaped."""
    name = path.relative_to(project.root).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()


def slug(name: str) -> str:
    """A name as a file name; a changed one begins with a digest of the name, so that no two names meet."""
    plain = re.sub(r"[^\w.+~@=-]", "-", name, flags=re.ASCII).lstrip(".")[:120] or "unnamed"
    return plain if plain == name else f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-{plain}"
