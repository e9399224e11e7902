"""What is learnt from text: similarity statistics, adapters, measured sublayer times, choices."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.store.records.artefacts import Weights
from pipeline.store.records.base import Count, Digest, Layer, Record, Seconds


class TextSource(Record):
    """What text was measured on ("from" in the file: files, a dataset, or the project's own text).

    Attributes:
        origin: paths of the files, name of the dataset, or words.
        sha256: of the text.
        characters: read of a dataset.
        skipped: pieces left out at the beginning.
    """

    origin: str | tuple[str, ...] = Field(validation_alias="from", serialization_alias="from")
    sha256: Digest | None = None
    characters: Count | None = None
    skipped: Count = 0


class SimilarityRecord(Record):
    """calib/<model>/similarity.json; the arrays lie beside it in similarity.npz.

    Attributes:
        weights: identity of the checkpoint.
        runner: 'torch', or the path of the graph that was run.
        length, buckets, wanted: T tokens a sequence, K position buckets, N sequences asked for.
        tokens: in all.
        samples: N sequences that were measured.
        arrays_sha256: of similarity.npz.
        cosine_layer, cosine_attn, cosine_mlp: [L], means over all tokens, for a reader without numpy.
    """

    what: Literal["similarity"] = "similarity"
    model: str
    weights: Weights | None
    runner: str
    length: Count
    buckets: Count
    tokens: Count
    texts: TextSource
    wanted: Count
    samples: Count = 0
    arrays_sha256: Digest
    cosine_layer: tuple[float, ...] = ()
    cosine_attn: tuple[float, ...] = ()
    cosine_mlp: tuple[float, ...] = ()


class HealLosses(Record):
    """Loss on held-out text: of the whole model, of the variant before and after healing. Nats a token."""

    base: float
    before: float
    after: float


class AdapterRecord(Record):
    """calib/<model>/<variant>/adapters/<name>/heal.json.

    Attributes:
        weights: identity of the checkpoint.
        settings: as `calib/heal.Settings` has them.
        healed_share: (before − after) / (before − base); None where there was no damage.
        sha256: of adapter_model.safetensors.
    """

    what: Literal["adapter"] = "adapter"
    model: str
    variant: str
    weights: Weights | None
    settings: dict[str, Any]
    texts: TextSource
    held_out_loss: HealLosses
    healed_share: float | None
    train_loss: tuple[float, ...] = ()
    trained_parameters: Count = 0
    seconds: Seconds = 0.0
    tools: dict[str, str] = {}
    sha256: Digest


class SublayerTimes(Record):
    """Seconds of one pass, and of one sublayer of each kind inside it."""

    whole: float
    attn: float
    mlp: float


class TimesRecord(Record):
    """calib/<model>/times-<precision>-<length>.json: what sublayers take on one device."""

    what: Literal["times"] = "times"
    base: Digest
    device: str
    length: Count
    sequences: Count
    seconds: SublayerTimes


class ChoiceRecord(Record):
    """What `pipeline select --json` prints."""

    skip: str
    attention: tuple[Layer, ...]
    mlp: tuple[Layer, ...]
    select: str
    kind: str
    count: Count
    statistic: str = ""
    note: str = ""
    chosen: tuple[tuple[str, float], ...] = ()
    stays: tuple[tuple[str, float], ...] = ()
