"""Student and teacher in one model: what a LoRA adapter learns, and from whom.

The student is the model without the variant's sublayers, with what stands in for them. The teacher, for two
of the three losses, is the same model in the same memory, with the sublayers back and the adapter off.

Legend: B batch, N sequences, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import set_seed

from pipeline.calib.losses import cross_entropy, divergence, mismatch
from pipeline.models import compensation, head, texts
from pipeline.models.reference import FAST, Dtype, Reference
from pipeline.store.records import HealSettings
from pipeline.types import Provider, SkipSet, UserError


class Healer:
    """A model that learns to do without sublayers.

    Args:
        folder: the checkpoint.
        skip: what the student lacks.
        settings: of the adapter and its training.
        overlay: what stands in for the sublayers, and the weights that they were folded into.
        device: that it computes on.

    Attributes:
        student: the model with its adapter; the sublayers are there, and left out pass by pass.
        trained: number of the adapter's parameters.

    Raises:
        UserError: no module of the student matches `settings.targets`, or a folded weight would be 4-bit.
    """

    def __init__(
        self,
        folder: Path,
        skip: SkipSet,
        settings: HealSettings,
        overlay: Path | None = None,
        device: Provider = "cpu",
    ) -> None:
        set_seed(settings.seed)  # the adapter's first matrices are drawn now
        self.skip, self.settings = skip, settings
        load = {**FAST, **(_quantized() if settings.quantize else {})}
        dtype: Dtype = settings.precision  # type: ignore[assignment]
        self.reference = Reference(folder, dtype=dtype, load=load, device=device)
        self.variant = StudentParts(self.reference, skip, overlay)
        if self.variant.weights and settings.quantize:
            raise UserError(f"{overlay} has folded weights, which cannot be 4-bit; leave --quantize out")
        modules = targets(self.reference, skip, settings.targets)
        if not modules:
            raise UserError(
                f"no linear module of {skip.name} matches --targets {','.join(settings.targets)}: "
                "nothing to train"
            )
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=modules,
            task_type="CAUSAL_LM",
        )
        self.student: Any = get_peft_model(self.reference.model, config)
        self.trained = sum(p.numel() for p in self.student.parameters() if p.requires_grad)
        self.cuts = cuts(skip, len(self.reference.layers))

    def objective(self, ids: torch.Tensor) -> torch.Tensor:
        """The loss of one batch [B, T]: cross-entropy, and what `settings.loss` adds to it."""
        with self.variant.standing(), self.reference.leaving(self.cuts) as kept:
            stream = head.last_stream(self.reference, ids)
        streams = list(kept.values())
        if self.settings.loss == "ce":
            return self._loss(ids, stream, None)
        with torch.no_grad(), self._teaching(), self.reference.leaving(self.cuts) as kept:
            teacher = head.last_stream(self.reference, ids)
        if self.settings.loss == "kl":
            return self._loss(ids, stream, teacher)
        distances = [mismatch(x, y) for x, y in zip(streams, kept.values(), strict=True)]
        return self._loss(ids, stream, None) + sum(distances) / len(distances)

    def _loss(self, ids: torch.Tensor, stream: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
        """Cross-entropy, and divergence from the teacher's stream where there is one; streams [B, T, C].

        Logits that do not fit are computed piece by piece, and once more where their gradient is needed.
        """
        rows, tokens = ids.shape
        parts = head.pieces(self.reference, rows, torch.arange(tokens))

        def piece(stream: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            logits = head.logits_of(self.reference, ids, stream, columns)
            loss = cross_entropy(logits, ids, columns)
            if teacher is not None:
                with torch.no_grad():
                    wanted = head.logits_of(self.reference, ids, teacher, columns)
                loss = loss + divergence(logits, wanted) * (len(columns) / tokens)
            return loss

        if len(parts) == 1:
            return piece(stream, parts[0])
        losses = [checkpoint(piece, stream, columns, use_reentrant=False) for columns in parts]
        return torch.stack(losses).sum()

    def mean_loss(self, tokens: texts.Tokens, teacher: bool = False) -> float:
        """Nats a token over [N, T] token ids; of the whole model without its adapter where `teacher`."""
        self.student.eval()
        device = next(self.student.parameters()).device
        losses = []
        with torch.no_grad(), self._teaching() if teacher else self.variant.standing():
            for row in torch.from_numpy(tokens):
                ids = row[None].to(device)
                losses.append(float(self._loss(ids, head.last_stream(self.reference, ids), None)))
        return float(np.mean(losses))

    @contextlib.contextmanager
    def _teaching(self) -> Iterator[None]:
        """The whole model, adapter off, no dropout."""
        training = self.student.training
        self.student.eval()
        try:
            with self.student.disable_adapter():
                yield
        finally:
            self.student.train(training)


class StudentParts:
    """What the student lacks, and what it has instead.

    Args:
        reference: the whole model, before an adapter is put around its modules.
        skip: what the student lacks.
        overlay: the file of its compensation.
    """

    def __init__(self, reference: Reference, skip: SkipSet, overlay: Path | None) -> None:
        self.reference, self.skip = reference, skip
        weights, self.maps = compensation.read(overlay, skip) if overlay else ({}, {})
        self.weights = [
            (reference.model.get_submodule(module), own, tensor)
            for name, tensor in weights.items()
            for module, _, own in [name.rpartition(".")]
        ]
        """(module, name in it, the folded weight)."""

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Makes the model the student's for a while.

        Folded weights come as parameters of their own: a backward pass made later still finds them.
        """
        kept = [(module, name, getattr(module, name)) for module, name, _ in self.weights]
        with self.reference.without(self.skip, self.maps):
            for (module, name, folded), (_, _, old) in zip(self.weights, kept, strict=True):
                parameter = torch.nn.Parameter(folded.to(old.device, old.dtype), requires_grad=False)
                setattr(module, name, parameter)
            try:
                yield
            finally:
                for module, name, old in kept:
                    setattr(module, name, old)


def targets(reference: Reference, skip: SkipSet, wanted: tuple[str, ...]) -> list[str]:
    """Full names of the linear modules to train, none of them of a skipped sublayer."""
    names = {id(module): name for name, module in reference.model.named_modules()}
    modules = set()
    for (layer, kind), sublayer in reference.sublayers().items():
        if (layer, kind) in skip:
            continue
        for name, module in sublayer.named_modules():
            # Quantised layers are subclasses of their own: Linear4bit.
            is_linear = isinstance(module, torch.nn.Linear) or "Linear" in type(module).__name__
            if is_linear and (kind in wanted or name.rsplit(".", 1)[-1] in wanted):
                modules.add(names[id(module)])
    return sorted(modules)


def cuts(skip: SkipSet, layers: int) -> list[int]:
    """The last layer of every run of layers that lack something: healing mends the stream that leaves it."""
    touched = {*skip.attention, *skip.mlp}
    return [layer for layer in range(layers) if layer in touched and layer + 1 not in touched]


def _quantized() -> dict[str, Any]:
    """Arguments of from_pretrained for 4-bit weights on the first GPU (QLoRA)."""
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": nf4, "device_map": {"": 0}}
