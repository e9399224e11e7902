"""Where a checkpoint came from, and what the sidecars of graphs and engines say."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from pipeline.store.records.base import (
    Count,
    Digest,
    FileDigest,
    FileState,
    Layer,
    NumLayers,
    Record,
    VariantName,
)
from pipeline.types import Head, Precision, SkipSet, Variant, precision_name

Contract = Literal["authored", "optimum"]
"""Who wrote a graph: this project, to its own contract, or optimum, to its."""
Weights = str | dict[str, Count]
"""The identity of a checkpoint. In files of 0.1 and 0.2 a digest of its headers, or name → bytes of the data
files that came with a graph of optimum's: neither speaks for content."""
QuantisationName = Annotated[str, Field(pattern=r"^int[48](-b\d{1,5})?(-[a-z]{1,20})?$")]
"""As `models/quantisation/names.py` has it: 'int4', 'int8-b32', 'int4-b32-gptq'."""
MinOptMax = tuple[Count, Count, Count]


class CheckpointSource(Record):
    """source.json: the checkpoint in this folder is complete, and this is where it came from.

    Attributes:
        origin: the folder, file, hub id or export that it was made from ("from" in the file).
        file, file_sha256, file_stamp: of a GGUF, its name, SHA-256, and (bytes, time of change in ns).
        converter: version of the code that converted a GGUF.
        revision: commit of a hub repository.
        etags: file → SHA-256 or git blob id that the hub gives.
        sha256: file → SHA-256 that `export --verify` computed.
        files: what the files of a folder were when they were copied.
        copies: what weights and config were in this folder when it was complete.
        weights: identity of an export of optimum's.
    """

    kind: Literal["folder", "gguf", "hub", "onnx"]
    origin: str = Field(validation_alias="from", serialization_alias="from")
    file: str | None = None
    file_sha256: Digest | None = None
    file_stamp: tuple[Count, int] | None = None
    converter: int | None = None
    revision: str | None = None
    etags: dict[str, str] = {}
    sha256: dict[str, Digest] = {}
    files: tuple[FileState, ...] = ()
    copies: tuple[FileState, ...] = ()
    weights: str | None = None


class Skipped(Record):
    """The layers of a skip set."""

    attention: tuple[Layer, ...] = ()
    mlp: tuple[Layer, ...] = ()


class VariantRecord(Record):
    """The fields that say which variant something is of."""

    model: str
    variant: VariantName
    skip: Skipped
    precision: Precision
    adapter: str | None = None
    head: Head = "gather"
    compensation: str | None = None
    max_tokens: Count | None = None
    quantisation: QuantisationName | None = None

    @property
    def precision_name(self) -> str:
        """As `Variant.precision_name`."""
        return precision_name(self.precision, self.quantisation)

    @property
    def skip_set(self) -> SkipSet:
        """What is left out."""
        return SkipSet(self.skip.attention, self.skip.mlp)

    def as_variant(self) -> Variant:
        """The variant that these fields describe."""
        parts = (self.precision, self.adapter, self.head, self.compensation, self.max_tokens)
        return Variant(self.model, self.skip_set, *parts, self.quantisation)


class Written(Record):
    """The artefact's file, as it was when its sidecar was written."""

    file: str
    sha256: Digest
    bytes: Count


class GraphRecord(VariantRecord, Written):
    """The sidecar of a graph.

    Attributes:
        contract: who wrote the graph.
        weights: identity of the checkpoint.
        files: its files, which lie beside the graph.
        config, tokenizer: SHA-256 of config.json, and over the tokenizer's files.
        tools: package → version of what wrote the graph.
        num_layers: L of the original model.
        base: the graph that it was cut from.
        quantised: the file of the quantised weights.
        compensated: the file of what stands in for skipped sublayers.
        healed: the file whose tensors an adapter changed.
        source_sha256: of optimum's model.onnx.
        source: where the checkpoint came from.
    """

    artefact: Literal["graph"]
    contract: Contract
    weights: Weights
    files: tuple[FileState, ...] = ()
    num_layers: NumLayers
    config: Digest | None = None
    tokenizer: Digest | None = None
    tools: dict[str, str] = {}
    base: FileDigest | None = None
    quantised: FileDigest | None = None
    compensated: FileDigest | None = None
    healed: FileDigest | None = None
    source_sha256: Digest | None = None
    source: CheckpointSource | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        """Its name, its parts and the files that it reads are of one variant, so that each may be trusted."""
        if self.variant != self.as_variant().name:
            raise ValueError(f"{self.variant:.80} is not the variant that its fields describe")
        parts = (self.quantisation, self.compensation, self.adapter)
        files = (self.quantised, self.compensated, self.healed)
        if [part is None for part in parts] != [file is None for file in files]:
            raise ValueError(
                "its quantisation, compensation or adapter and the files that it reads do not fit together"
            )
        return self

    @property
    def overlays(self) -> tuple[FileDigest, ...]:
        """What it reads beside the checkpoint; a later file's tensors stand in the place of an earlier's."""
        files = (self.quantised, self.compensated, self.healed)
        return tuple(file for file in files if file is not None)


class MergedRecord(Written):
    """The sidecar of a merged graph.

    Attributes:
        files: of the checkpoint, beside the graph.
        variants: name of each variant → SHA-256 of the graph that it was merged from.
        healed: the overlays of all of them.
    """

    artefact: Literal["merged"]
    model: str
    precision: Precision
    quantisation: QuantisationName | None = None
    contract: Contract
    weights: Weights
    files: tuple[FileState, ...] = ()
    num_layers: NumLayers
    variants: dict[str, Digest]
    healed: tuple[FileDigest, ...] = ()
    head: Head = "gather"
    tokenizer: Digest | None = None
    tools: dict[str, str] = {}

    @property
    def precision_name(self) -> str:
        """As `Variant.precision_name`."""
        return precision_name(self.precision, self.quantisation)


class BuildFigures(Record):
    """What a build took and gave.

    Attributes:
        layers: TensorRT layer type → how many.
        num_layers: their sum.
        activation_bytes, weights_bytes: GPU memory as the builder tells it, one number a profile.
        parse_seconds, build_seconds, process_peak_mb: of the build.
    """

    layers: dict[str, Count]
    num_layers: Count
    activation_bytes: tuple[Count, ...] = ()
    weights_bytes: tuple[Count, ...] = ()
    parse_seconds: float
    build_seconds: float
    process_peak_mb: Count


class Ranges(Record):
    """Minimum, optimum and maximum of B, of S in prefill, of P, and of K."""

    batch: MinOptMax
    length: MinOptMax
    past: MinOptMax
    wanted: MinOptMax


class EngineRecord(Written):
    """The sidecar of an engine of one variant, or of a merged graph: then it has `variants` and no `skip`.

    Attributes:
        folder: of the checkpoint and the graph, relative to the engine's folder.
        graph: what it was built from.
        files: the weights that it was built from, in `folder`, with their whole SHA-256.
        profiles: input name → (minimum, optimum, maximum) shape; one mapping a profile.
        stripped: built without its weights; they are put back from the graph when it is loaded.
        proven: in words, what has been seen of it.
    """

    artefact: Literal["engine"]
    model: str
    variant: VariantName
    precision: Precision
    skip: Skipped | None = None
    adapter: str | None = None
    head: Head = "gather"
    compensation: str | None = None
    max_tokens: Count | None = None
    quantisation: QuantisationName | None = None
    variants: dict[str, Digest] | None = None
    folder: str
    graph: FileDigest
    weights: Weights
    files: tuple[FileState, ...] = ()
    tokenizer: Digest | None = None
    backend: Literal["tensorrt-rtx", "tensorrt"]
    backend_version: str
    targets: tuple[str, ...]
    ranges: Ranges
    stripped: bool
    profiles: tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...] = ()
    build: BuildFigures | None = None
    proven: str = "not run"

    @property
    def precision_name(self) -> str:
        """As `Variant.precision_name`."""
        return precision_name(self.precision, self.quantisation)

    def as_variant(self) -> Variant | None:
        """The variant that it computes; None for an engine of a merged graph."""
        if self.skip is None:
            return None
        skip = SkipSet(self.skip.attention, self.skip.mlp)
        parts = (self.precision, self.adapter, self.head, self.compensation, self.max_tokens)
        return Variant(self.model, skip, *parts, self.quantisation)


Sidecar = GraphRecord | MergedRecord | EngineRecord
SIDECAR: TypeAdapter[Sidecar] = TypeAdapter(Annotated[Sidecar, Field(discriminator="artefact")])


def variant_fields(variant: Variant) -> dict[str, Any]:
    """The fields of a record that say which variant it is of; `VariantRecord.as_variant` reads them back."""
    return {
        "model": variant.model,
        "variant": variant.name,
        "skip": {"attention": variant.skip.attention, "mlp": variant.skip.mlp},
        "precision": variant.precision,
        "adapter": variant.adapter,
        "head": variant.head,
        "compensation": variant.compensation,
        "max_tokens": variant.max_tokens,
        "quantisation": variant.quantisation,
    }
