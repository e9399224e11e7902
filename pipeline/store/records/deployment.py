"""A sweep's ledger, and what `pipeline ship` leaves in a Triton model repository."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.store.records.artefacts import VariantRecord, Weights
from pipeline.store.records.base import Count, Digest, Record, Seconds

JobState = Literal["done", "failed", "waiting", "running", "shared"]


class LedgerEntry(Record):
    """One job of a sweep, and how it stands.

    Attributes:
        kind, frac, select: the cell of the grid; None for the base.
        error: why it is not done, in one line.
        seconds: of the run that did it; None where it was found done.
        command: as a person types it.
        outputs: its files, relative to the project.
    """

    id: str
    stage: str
    model: str
    kind: str | None = None
    frac: float | None = None
    select: str | None = None
    variant: str | None = None
    precision: str | None = None
    task: str | None = None
    state: JobState
    error: str | None = None
    seconds: Seconds | None = None
    command: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class LedgerRecord(Record):
    """evals/sweeps/<recipe>/ledger.json."""

    what: Literal["sweep"] = "sweep"
    recipe: str
    recipe_sha256: Digest
    jobs: tuple[LedgerEntry, ...]


class ShippedFile(Record):
    """Digest and size of a file in a repository."""

    sha256: Digest
    bytes: Count


class ShipSettings(Record):
    """How NAME_generate runs; users may change it later in its config.pbtxt.

    Attributes:
        rows: requests side by side at most.
        cache_tokens: tokens of keys and values that the batch may need at most.
        queue: requests that wait at most.
    """

    rows: Count = 16
    cache_tokens: Count = 16_384
    queue: Count = 128


class ShippedVersion(VariantRecord):
    """One version of a model in a repository.

    Attributes:
        sha256: of the artefact.
        kind: 'onnx graph', 'tensorrt plan' or 'tensorrt-rtx plan'.
        settings: of its text model.
        artefact: the path that it was shipped from, relative to SHIP.json.
        weights: identity of the checkpoint.
        contents: digest of all its bytes.
        check: what its check said, in words.
        raw_model: NAME is there too, and not NAME_generate alone.
        plan, graph: where they lie in the repository.
        kv_bytes_per_token: of the cache, for one sequence.
        needs: what the serving machine must have.
        shipped: when, in ISO form.
        files: path in the repository → digest and size.
    """

    sha256: Digest
    settings: ShipSettings
    kind: str
    artefact: str
    weights: Weights | None = None
    contents: Digest | None = None
    check: str
    raw_model: bool
    plan: str | None = None
    graph: str
    kv_bytes_per_token: Count
    needs: dict[str, str] = {}
    shipped: str
    files: dict[str, ShippedFile]


class ShippedModel(Record):
    """A NAME of a repository: its text model, and its versions by number."""

    generate: str
    versions: dict[str, ShippedVersion] = {}


class ShipRecord(Record):
    """SHIP.json.

    Attributes:
        models: by NAME.
        switching: NAMEs whose config.pbtxt may still name an earlier version: a `ship` runs, or was killed.
    """

    what: Literal["ship"] = "ship"
    format: Literal[1] = 1
    tool_version: str = Field(alias="skip-pipeline")
    triton: str
    not_checked: tuple[str, ...] = ()
    models: dict[str, ShippedModel] = {}
    switching: tuple[str, ...] = ()
