"""What a project holds: models, graphs, engines, and whether each has passed its check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.cli.app import LOOK, Json, app, show_result
from pipeline.types import UserError


@dataclass(frozen=True, slots=True)
class Entry:
    """One graph or engine.

    Attributes:
        path: of the file.
        variant, precision: that it computes.
        bytes: of the file.
        check: 'passed' or 'not passed yet'.
        problem: why its sidecar cannot be read; then the other fields are None.
    """

    path: str
    variant: str | None = None
    precision: str | None = None
    bytes: int | None = None
    check: str | None = None
    problem: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON: the fields that it has."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def text(self) -> str:
        """One line for a person."""
        size = (self.bytes or 0) / 1e6
        return f"  {self.path:<70} {self.problem or f'{size:8.2f} MB  check {self.check}'}"


Inventory = dict[str, list[Entry]]
"""Model → its graphs and engines."""


def inventory(project: store.Project | None = None) -> Inventory:
    """The models of a project; by default of that in the current directory."""
    return {
        model: [
            _entry(path)
            for files in (store.graphs_of, store.engines_of)
            for path in files(model, project, twins=True)
        ]
        for model in store.models(project)
    }


def _entry(path: Path) -> Entry:
    try:
        variant, sidecar = store.variant(path, quick=True), store.sidecar(path, quick=True)
        return Entry(
            str(path), variant.name, variant.precision_name, sidecar.bytes, check_state(path, sidecar.sha256)
        )
    except UserError as error:
        return Entry(str(path), problem=str(error))


def check_state(path: Path, digest: str | None = None) -> str:
    """'passed' or 'not passed yet'.

    Args:
        path: a graph or an engine.
        digest: its SHA-256, where it is known.
    """
    return "passed" if store.check_passed(path, digest, provider=None) else "not passed yet"


def text(models: Inventory) -> str:
    """The inventory for a person."""
    if not models:
        return "no model under graphs/; begin with `pipeline export demo`"
    return "\n".join(
        line for model, entries in models.items() for line in (model, *(e.text() for e in entries))
    )


@app.command("list", rich_help_panel=LOOK)
def list_(as_json: Json = False) -> None:
    """What exists: models, graphs, engines, and whether each has passed its check.

    Example: `pipeline list --json`
    """
    models = inventory()
    plain = {model: [entry.plain() for entry in entries] for model, entries in models.items()}
    show_result(plain, as_json, text(models))
