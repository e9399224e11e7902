"""Stage: a variant → a LoRA adapter that heals it (Gromov et al. 2024, §3.2 step 4), trained with peft.

Legend: N sequences, T tokens.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import torch

from pipeline import store
from pipeline.calib import adapter_files, adapters, training
from pipeline.calib.healer import Healer
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.store import records
from pipeline.store.records import AdapterRecord, HealLosses, HealRequest, HealSettings
from pipeline.types import Provider, UserError, Variant

HELD_OUT = 16
"""Sequences on which the damage is measured; never trained on."""


def heal(
    graph: Path,
    settings: HealSettings,
    text_input: texts.TextInput = texts.OWN,
    name: str = "heal",
    force: bool = False,
    device: Provider = "cpu",
) -> Path:
    """Trains an adapter for a variant, or finds it trained with these settings; resumes one that was stopped.

    Args:
        graph: the variant's graph; its skip set is what the student lacks, its compensation what stands in.
        settings: of the adapter and its training.
        text_input: what text it learns from.
        name: of the adapter.
        force: train again what is there and matches.
        device: that the model is on; with 4-bit weights the GPU in any case.

    Returns:
        The adapter's folder.

    Raises:
        UserError: the graph leaves nothing out, has an adapter already, reads another compensation than is
            there, no module can be trained, a setting is out of range, or the text is too short.
    """
    _check(settings)
    variant = _unhealed(graph)
    checkpoint = open_checkpoint(graph.parent)
    place = adapters.folder(checkpoint.calib, variant, name)
    record = place / adapters.RECORD
    tokens, source = _tokens(checkpoint, settings, text_input)
    source = source.replaced(origin=text_input.origin(record))
    request = _request(checkpoint, variant, settings, source, device)
    with store.lock(place):
        known = records.read_same(AdapterRecord, record, request)
        if not force and known and adapters.altered(place, known) is None:
            return place
        record.unlink(missing_ok=True)
        _train(checkpoint, variant, tokens, place, request)
    return place


def _unhealed(graph: Path) -> Variant:
    """The variant of a graph that can be healed; its compensation is the one that is there."""
    variant = store.variant(graph)
    if not variant.skip or variant.adapter:
        why = "has an adapter already" if variant.adapter else "leaves nothing out"
        raise UserError(f"{graph} {why}; heal a variant that was cut")
    store.overlays(graph)
    return variant


def _request(
    checkpoint: Checkpoint,
    variant: Variant,
    settings: HealSettings,
    source: records.TextSource,
    device: Provider,
) -> HealRequest:
    return HealRequest(
        model=checkpoint.model,
        variant=variant.name,
        weights=checkpoint.identity,
        contents=checkpoint.contents,
        compensation=adapters.overlay_digest(checkpoint, variant),
        settings=settings,
        texts=source,
        device="cuda" if settings.quantize else device,
    )


def _check(settings: HealSettings) -> None:
    if min(settings.steps, settings.batch, settings.rank) < 1 or settings.length < 2 or settings.lr <= 0:
        raise UserError(
            "--steps, --batch and --rank must be at least 1, --length at least 2, and --lr above 0"
        )
    if max(settings.steps, settings.batch, settings.length) > 10**9 or settings.rank > 10**6:
        raise UserError("--steps, --batch and --length must be at most 10^9, and --rank at most 10^6")
    if not 0 <= settings.seed < 2**32:  # what numpy takes, which transformers seeds too
        raise UserError(f"--seed {settings.seed} is not between 0 and 2^32 - 1")
    if settings.precision not in ("fp32", "bf16"):
        raise UserError(f"--precision is fp32 or bf16, not {settings.precision!r:.40}")
    if settings.quantize not in (None, "4bit"):
        raise UserError(f"--quantize {settings.quantize} is not known; 4bit is")
    if settings.quantize and not torch.cuda.is_available():
        raise UserError(
            "--quantize 4bit needs an NVIDIA GPU, and none is seen here; "
            "leave it out to train plain LoRA on the CPU"
        )


def _tokens(
    checkpoint: Checkpoint, settings: HealSettings, text_input: texts.TextInput
) -> tuple[texts.Tokens, records.TextSource]:
    """[N, T] token ids, the last HELD_OUT of them to measure on, and where they are from."""
    wanted = settings.steps * settings.batch + HELD_OUT
    tokens, source = texts.cut(checkpoint.folder, text_input, settings.length, wanted, when_short="fewer")
    if len(tokens) <= HELD_OUT:
        raise UserError(
            f"the text fills {len(tokens)} sequences of {settings.length} tokens; "
            f"healing needs more than {HELD_OUT}"
        )
    return tokens, source


def _train(
    checkpoint: Checkpoint, variant: Variant, tokens: texts.Tokens, place: Path, request: HealRequest
) -> None:
    """Trains, measures, and writes the adapter and then its record."""
    partial = place / ".partial"
    begun = partial / "wanted.json"
    if partial.is_dir() and records.read_same(HealRequest, begun, request) is None:
        shutil.rmtree(partial)
    store.write_json(begun, request.plain())
    started = time.monotonic()
    overlay, held_out = adapters.compensation(checkpoint, variant), tokens[-HELD_OUT:]
    healer = Healer(checkpoint.folder, variant.skip, request.settings, overlay, request.device)
    base, before = healer.mean_loss(held_out, teacher=True), healer.mean_loss(held_out)
    train_loss = training.train(healer, tokens[:-HELD_OUT], partial)
    after = healer.mean_loss(held_out)
    if not np.isfinite([base, before, after]).all():
        raise UserError(
            f"training {request.variant} diverged (losses {base:.3f}, {before:.3f}, {after:.3f}); "
            "try a lower --lr"
        )
    healer.student.save_pretrained(str(place))
    record = AdapterRecord(
        **dict(request),
        held_out_loss=HealLosses(base=base, before=before, after=after),
        healed_share=(before - after) / (before - base) if before > base else None,
        train_loss=tuple(loss if np.isfinite(loss) else None for loss in train_loss),
        trained_parameters=healer.trained,
        seconds=time.monotonic() - started,
        tools=store.versions("torch", "transformers", "peft"),
        sha256=store.sha256(place / adapter_files.WEIGHTS),
        config_sha256=store.sha256(place / adapter_files.CONFIG),
    )
    store.write_json(place / adapters.RECORD, record.plain())
    begun.unlink()  # first: without it nobody goes on from what a kill leaves of the folder
    shutil.rmtree(partial)
