"""artefact.json: which artefact NAME_generate runs. `pipeline ship` writes it, the model reads it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.runtime.runner import Limits
from pipeline.runtime.tensorrt import Plan
from pipeline.types import UserError

FILE = "artefact.json"


@dataclass(frozen=True, slots=True)
class ServedArtefact:
    """The artefact's files. Paths are relative to the repository.

    Attributes:
        graph: the ONNX graph that is served, or from which the plan was built.
        files: path of every file of the artefact → its SHA-256.
        plan: the engine's file; None where a graph is served.
        engine: what the runner must know of the plan; None where a graph is served.
        embedding_rows: token ids that it takes are below this; None where its graph does not tell.
    """

    graph: str
    files: dict[str, str]
    plan: str | None = None
    engine: Plan | None = None
    embedding_rows: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From artefact.json in the model's version folder.

        Raises:
            UserError: it is missing or has another form.
        """
        path = folder / FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            engine = None if fields["engine"] is None else _plan(fields["engine"])
            rows = fields.get("embedding_rows")  # 0.1 wrote none
            return cls(str(fields["graph"]), dict(fields["files"]), fields["plan"], engine, rows)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not as `pipeline ship` writes it ({error!r}); ship it again"
            ) from None

    def plain(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return asdict(self)

    def verify(self, repository: Path) -> None:
        """Hashes every file of the artefact.

        Raises:
            UserError: a file is not what was shipped.
            OSError: a file cannot be read.
        """
        for name, digest in self.files.items():
            with (repository / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise UserError(
                        f"{repository / name} is not what was shipped (SHA-256 differs); ship it again"
                    )


def _plan(fields: dict[str, Any]) -> Plan:
    profiles = (
        {name: tuple(tuple(shape) for shape in shapes) for name, shapes in profile.items()}
        for profile in fields["profiles"]
    )
    values = {
        "targets": tuple(fields["targets"]),
        "profiles": tuple(profiles),
        "limits": Limits(**fields["limits"]),
    }
    return Plan(**{**fields, **values})
