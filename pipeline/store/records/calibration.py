"""What is learnt from text: similarity statistics, adapters, measured sublayer times, choices."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from pipeline.store.records.artefacts import Weights
from pipeline.store.records.base import Count, Digest, Layer, Record, Seconds, read_if_valid
from pipeline.types import Provider, SkipSet

log = logging.getLogger(__name__)


class TextSource(Record):
    """What text was measured on ("from" in the file: files, a dataset, or the project's own text).

    Attributes:
        origin: paths of the files, name of the dataset, or words.
        sha256: of the text.
        characters: read of a dataset.
        skipped: pieces left out at the beginning.
        ids: digest of the token ids that were read: a text is other tokens to another tokenizer. None before
            0.3.
    """

    origin: str | tuple[str, ...] = Field(validation_alias="from", serialization_alias="from")
    sha256: Digest | None = None
    characters: Count | None = None
    skipped: Count = 0
    ids: Digest | None = None


class TextBasedRequest(Record):
    """Something that is measured or trained on a text."""

    texts: TextSource

    def is_for(self, request: TextBasedRequest) -> bool:
        """Whether this record is of just what the request asks for. A text is the same by its content."""
        same_text = request.texts.replaced(origin=self.texts.origin)
        return self.matches(request.replaced(texts=same_text).plain())


class OfModelOnText(TextBasedRequest):
    """What follows from a model's weights and a text.

    Attributes:
        weights: identity of the checkpoint.
        contents: digest of all its bytes.
        device: that the model runs on.
        quantised: SHA-256 of the file of quantised weights that it holds; None: its own.
    """

    model: str
    weights: Weights | None
    contents: Digest
    device: Provider = "cpu"
    quantised: Digest | None = None


OnText = TypeVar("OnText", bound=TextBasedRequest)


def read_same(form: type[OnText], path: Path, request: TextBasedRequest) -> OnText | None:
    """The record in a file, where it is there and of just what the request asks for."""
    record = read_if_valid(form, path)
    if record is None or record.is_for(request):
        return record
    if getattr(record, "contents", "") is None:
        log.warning("%s is of an older version, which did not look at the weights' content: made again", path)
    return None


class SimilarityRequest(TextBasedRequest):
    """What `calibrate` is to measure.

    Attributes:
        weights: identity of the checkpoint.
        contents: digest of all its bytes; None in files of 0.1 and 0.2.
        runner: 'torch', 'torch bf16', or the path of a graph, relative to this file; and ' on cuda' where it
            ran there.
        length, buckets, wanted: T tokens a sequence, K position buckets, N sequences asked for.
        tokens: in all.
    """

    what: Literal["similarity"] = "similarity"
    model: str
    weights: Weights | None
    contents: Digest | None = None
    runner: str
    length: Count
    buckets: Count
    tokens: Count
    texts: TextSource
    wanted: Count


class SimilaritySums(SimilarityRequest):
    """calib/<model>/similarity.partial.json: a run that goes on; its sums are in similarity.partial.npz.

    Attributes:
        arrays_sha256: of the sums.
    """

    arrays_sha256: Digest


class SimilarityRecord(SimilarityRequest):
    """calib/<model>/similarity.json; the arrays lie beside it in similarity.npz.

    Attributes:
        samples: N sequences that were measured.
        arrays_sha256: of similarity.npz.
        cosine_layer, cosine_attn, cosine_mlp: [L], means over all tokens, for a reader without numpy.
    """

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


class HealSettings(Record):
    """How an adapter is trained.

    Rank, rate, schedule and targets are those that Gromov et al. 2024 give for Llama-2 (appendix B): rank 64
    = alpha, 3e-4, cosine after a warm-up, the MLP. Steps and batch are what a CPU does in minutes.

    Attributes:
        loss: 'ce' next-token cross-entropy; 'kl' adds the divergence from the whole model's distribution;
            'aux' adds the distance of the residual streams at the cut (Gromov et al., equation 8).
        steps, batch: optimiser steps, sequences a step.
        length: T tokens a sequence.
        rank, alpha, dropout: of the LoRA matrices.
        lr, warmup: peak learning rate, and steps until it is reached.
        targets: 'mlp' and 'attn' (every linear module of them), or modules' own names; those of skipped
            sublayers never are.
        quantize: '4bit' for QLoRA, where there is a GPU.
        precision: of the model's weights and activations, 'fp32' or 'bf16'; the adapter's are in fp32.
        seed: of the first matrices, dropout and order.
    """

    loss: Literal["ce", "kl", "aux"] = "ce"
    steps: int = 60
    batch: int = 4
    length: int = 256
    rank: int = 64
    alpha: int = 64
    dropout: float = 0.05
    lr: float = 3e-4
    warmup: int = 5
    targets: tuple[str, ...] = ("mlp",)
    quantize: str | None = None
    precision: str = "fp32"
    seed: int = 0


class HealRequest(TextBasedRequest):
    """What adapter is to be trained.

    Attributes:
        variant: its name, compensation included.
        weights: identity of the checkpoint.
        contents: digest of all its bytes; None in files of 0.1 and 0.2.
        compensation: SHA-256 of the overlay that it is trained on; None where nothing stands in.
        device: that the model is on; 'cpu' where an older file does not say.
    """

    what: Literal["adapter"] = "adapter"
    model: str
    variant: str
    weights: Weights | None
    contents: Digest | None = None
    compensation: Digest | None = None
    settings: HealSettings
    texts: TextSource
    device: Provider = "cpu"


class AdapterRecord(HealRequest):
    """calib/<model>/<variant>/adapters/<name>/heal.json.

    Attributes:
        healed_share: (before − after) / (before − base); None where there was no damage.
        train_loss: of each step; None where it was not finite.
        sha256: of adapter_model.safetensors.
        config_sha256: of adapter_config.json, which says how much of it is added; None before 0.3.
    """

    held_out_loss: HealLosses
    healed_share: float | None
    train_loss: tuple[float | None, ...] = ()
    trained_parameters: Count = 0
    seconds: Seconds = 0.0
    tools: dict[str, str] = {}
    sha256: Digest
    config_sha256: Digest | None = None


class MergedTensors(Record):
    """graphs/<model>/<variant>~<adapter>.json, beside the tensors that the adapter changed.

    Attributes:
        adapter: SHA-256 of adapter_model.safetensors.
        contents: digest of the checkpoint that it was merged into.
        compensation: SHA-256 of the overlay that it was merged into.
        sha256: of the tensors' file.
    """

    what: Literal["merged-tensors"] = "merged-tensors"
    adapter: Digest
    contents: Digest
    compensation: Digest | None = None
    sha256: Digest


class SublayerTimes(Record):
    """Seconds of one pass, and of one sublayer of each kind inside it, on one backend at one length."""

    whole: float
    attn: float
    mlp: float

    def of(self, skip: SkipSet) -> float:
        """Seconds that the sublayers of a skip set take together."""
        return len(skip.attention) * self.attn + len(skip.mlp) * self.mlp

    def scaled(self, factor: float) -> SublayerTimes:
        """The same with sublayers that take `factor` times as long."""
        return SublayerTimes(whole=self.whole, attn=self.attn * factor, mlp=self.mlp * factor)


class TimesRecord(Record):
    """calib/<model>/times-<precision>-<length>[.cuda].json: what sublayers take on one device."""

    what: Literal["times"] = "times"
    base: Digest
    device: str
    length: Count
    sequences: Count
    seconds: SublayerTimes


class ChoiceRecord(Record):
    """What `pipeline select --json` prints; `device` is what a rule that runs the model ran it on."""

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
    device: Provider = "cpu"
