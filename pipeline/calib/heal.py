"""Stage: a variant → a LoRA adapter that heals it (Gromov et al. 2024, §3.2 step 4), trained by transformers and peft.

The student is the model without the variant's sublayers; the teacher, for two of the three losses, is the same model in the
same memory, with the sublayers back and the adapter off.

Legend: B batch, T tokens, V vocabulary, C hidden size.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from pipeline import store
from pipeline.calib import adapters, similarity
from pipeline.models import checkpoint, texts
from pipeline.models.reference import FAST, Reference
from pipeline.types import SkipSet, UserError

Loss = Literal["ce", "kl", "aux"]
HELD_OUT = 16
"""Sequences on which the damage is measured; never trained on."""
SAVED_EVERY = 20
"""Steps between two checkpoints."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an adapter is trained. Rank, rate, schedule and targets as Gromov et al. give them for Llama-2 (appendix B of the
    published paper, from memory: the seed text lacks it): rank 64 = alpha, 3e-4, cosine after a warm-up, the MLP. Steps and
    batch are what a CPU does in minutes.

    Attributes:
        loss: 'ce' next-token cross-entropy; 'kl' adds the divergence from the whole model's distribution; 'aux' adds the
            distance of the residual streams at the cut (Gromov et al., equation 8).
        length: T.
        targets: 'mlp' and 'attn' (every linear module of them), or modules' own names; those of skipped sublayers never are.
        quantize: '4bit' for QLoRA, where there is a GPU.
    """

    loss: Loss = "ce"
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
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.rank) < 1 or self.length < 2 or self.lr <= 0:
            raise UserError(
                "--steps, --batch and --rank must be at least 1, --length at least 2, and --lr above 0"
            )
        if self.quantize not in (None, "4bit"):
            raise UserError(f"--quantize {self.quantize} is not known; 4bit is")
        if self.quantize and not torch.cuda.is_available():
            raise UserError(
                "--quantize 4bit needs an NVIDIA GPU, and none is seen here; leave it out to train plain LoRA on the CPU"
            )


def heal(
    graph: Path, settings: Settings, source: texts.Source = texts.OWN, name: str = "heal", force: bool = False
) -> Path:
    """Trains an adapter for a variant, or finds it trained with these very settings; goes on with one that was stopped.

    Args:
        graph: the variant's graph; its skip set is what the student lacks.

    Returns:
        The adapter's folder.

    Raises:
        UserError: the graph leaves nothing out, has an adapter already, no module can be trained, or the text is too short.
    """
    record = store.read_sidecar(graph)
    variant = store.variant_of(record)
    if not variant.skip or variant.adapter:
        raise UserError(
            f"{graph} {'has an adapter already' if variant.adapter else 'leaves nothing out'}; heal a variant that was cut"
        )
    found = checkpoint.open_checkpoint(graph.parent)
    place = adapters.folder(found.model, variant.skip, name)
    tokens, told = texts.cut(
        found.folder, source, settings.length, settings.steps * settings.batch + HELD_OUT, at_most=True
    )
    if len(tokens) <= HELD_OUT:
        raise UserError(
            f"the text fills {len(tokens)} sequences of {settings.length} tokens; healing needs more than {HELD_OUT}"
        )
    wanted = {
        "what": "adapter", "model": found.model, "variant": variant.skip.name, "weights": similarity.identity(found),
        "settings": json.loads(json.dumps(asdict(settings))), "texts": told,
    }  # fmt: skip
    with store.lock(place):
        if (
            not force
            and (place / adapters.RECORD).is_file()
            and _same(store.read_json(place / adapters.RECORD), wanted)
        ):
            return place
        (place / adapters.RECORD).unlink(missing_ok=True)
        healer = Healer(found.folder, variant.skip, settings)
        _train(healer, tokens[:-HELD_OUT], tokens[-HELD_OUT:], place, wanted)
    return place


def _same(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in wanted.items())


def _train(
    healer: Healer, tokens: texts.Tokens, held_out: texts.Tokens, place: Path, wanted: dict[str, Any]
) -> None:
    """Trains, measures, and writes the adapter and then its record."""
    settings, partial = healer.settings, place / ".partial"
    if partial.is_dir() and store.read_json(partial / "wanted.json") != wanted:
        shutil.rmtree(partial)
    store.write_json(partial / "wanted.json", wanted)
    started = time.monotonic()
    losses = {"base": healer.mean_loss(held_out, teacher=True), "before": healer.mean_loss(held_out)}
    rows = torch.from_numpy(tokens)
    with Progress(
        TextColumn("healing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        watcher = _Watcher(bar, settings.steps)
        trainer = _Trainer(
            model=healer.student, args=_arguments(settings, partial), callbacks=[watcher],
            train_dataset=[{"input_ids": row} for row in rows],
        )  # fmt: skip
        trainer.healer = healer
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(partial)))
    losses["after"] = healer.mean_loss(held_out)
    if not np.isfinite(list(losses.values())).all():
        raise UserError(f"training {wanted['variant']} diverged (losses {losses}); try a lower --lr")
    healer.student.save_pretrained(str(place))
    damage = losses["before"] - losses["base"]
    store.write_json(
        place / adapters.RECORD,
        {
            **wanted,
            "held_out_loss": losses,
            "healed_share": (losses["before"] - losses["after"]) / damage if damage > 0 else None,
            "train_loss": watcher.losses,
            "trained_parameters": healer.trained,
            "seconds": time.monotonic() - started,
            "tools": store.versions("torch", "transformers", "peft"),
            "sha256": store.sha256(place / "adapter_model.safetensors"),
        },
    )
    shutil.rmtree(partial)


def _arguments(settings: Settings, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, per_device_train_batch_size=settings.batch, learning_rate=settings.lr,
        lr_scheduler_type="cosine", warmup_steps=min(settings.warmup, settings.steps - 1), seed=settings.seed,
        data_seed=settings.seed, logging_steps=1, save_steps=SAVED_EVERY, save_total_limit=1, report_to="none",
        disable_tqdm=True, remove_unused_columns=False, bf16=torch.cuda.is_available(), weight_decay=0.0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


class Healer:
    """Student and teacher in one model.

    Attributes:
        student: the model with its adapter; the sublayers are there, and left out pass by pass.
        trained: number of the adapter's parameters.
    """

    def __init__(self, folder: Path, skip: SkipSet, settings: Settings) -> None:
        set_seed(settings.seed)  # the adapter's first matrices are drawn now
        self.skip, self.settings = skip, settings
        self.reference = Reference(folder, load={**FAST, **(_quantized() if settings.quantize else {})})
        chosen = targets(self.reference, skip, settings.targets)
        if not chosen:
            raise UserError(
                f"no linear module of {skip.name} matches --targets {','.join(settings.targets)}: nothing to train"
            )
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=chosen,
            task_type="CAUSAL_LM",
        )
        self.student: Any = get_peft_model(self.reference.model, config)
        self.trained = sum(p.numel() for p in self.student.parameters() if p.requires_grad)
        self.cuts = cuts(skip, len(self.reference.layers))

    def objective(self, ids: torch.Tensor) -> torch.Tensor:
        """The loss of one batch [B, T]: cross-entropy, and what `settings.loss` adds to it."""
        with self.reference.without(self.skip), self.reference.leaving(self.cuts) as streams:
            logits = self.student(input_ids=ids, use_cache=False).logits
        mine = list(streams.values())
        loss = _cross_entropy(logits, ids)
        if self.settings.loss == "ce":
            return loss
        with torch.no_grad(), self._teaching(), self.reference.leaving(self.cuts) as streams:
            theirs = self.student(input_ids=ids, use_cache=False).logits
        if self.settings.loss == "kl":
            return loss + divergence(logits, theirs)
        return loss + sum(mismatch(x, y) for x, y in zip(mine, streams.values(), strict=True)) / len(mine)

    def mean_loss(self, tokens: texts.Tokens, teacher: bool = False) -> float:
        """Nats a token over [N, T] token ids; of the whole model without its adapter where `teacher`."""
        self.student.eval()
        device = next(self.student.parameters()).device
        with torch.no_grad(), self._teaching() if teacher else self.reference.without(self.skip):
            found = [
                float(
                    _cross_entropy(
                        self.student(input_ids=batch.to(device), use_cache=False).logits, batch.to(device)
                    )
                )
                for batch in torch.from_numpy(tokens).split(1)
            ]
        return float(np.mean(found))

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


def targets(reference: Reference, skip: SkipSet, wanted: tuple[str, ...]) -> list[str]:
    """Full names of the linear modules to train, none of them of a skipped sublayer."""
    names = {id(module): name for name, module in reference.model.named_modules()}
    found = []
    for (layer, kind), module in reference.sublayers().items():
        if (layer, kind) in skip:
            continue
        for name, part in ("", module), *module.named_modules():
            linear = isinstance(part, torch.nn.Linear) or "Linear" in type(part).__name__
            if linear and (kind in wanted or name.rsplit(".", 1)[-1] in wanted):
                found.append(names[id(part)])
    return sorted(set(found))


def cuts(skip: SkipSet, layers: int) -> list[int]:
    """The last layer of every run of layers that lack something: the stream that leaves it is what healing should mend."""
    touched = {*skip.attention, *skip.mlp}
    return [layer for layer in range(layers) if layer in touched and layer + 1 not in touched]


def divergence(logits: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) in nats, mean over positions; both [B, T, V]."""
    mine, wanted = (functional.log_softmax(x.float().flatten(0, 1), dim=-1) for x in (logits, theirs))
    return functional.kl_div(mine, wanted, reduction="batchmean", log_target=True)


def mismatch(stream: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Gromov et al., equation 8, over the teacher's own size: |x − y|² / |y|², mean over tokens; both [B, T, C].

    The first token's stream is a thousand times as large as the others' in Llama-style models; over its own size it counts
    as one token among others.
    """
    apart = (stream.float() - wanted.float()).pow(2).sum(dim=-1)
    return (apart / wanted.float().pow(2).sum(dim=-1).clamp_min(1e-12)).mean()


def _cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _quantized() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": nf4, "device_map": {"": 0}}


class _Trainer(Trainer):
    """transformers' trainer on the healer's objective: schedule, checkpoints, resumption are its own."""

    healer: Healer

    def compute_loss(self, _model: Any, inputs: dict[str, Any], *_args: Any, **_kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return self.healer.objective(inputs["input_ids"])


class _Watcher(TrainerCallback):
    """Shows steps and loss, and keeps the losses."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self.bar, self.losses = bar, list[float]()
        self.task = bar.add_task("healing", total=steps, loss="")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - transformers' own names
        self.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if "loss" in kwargs.get("logs", {}):
            self.bar.update(self.task, completed=state.global_step, loss=f"loss {kwargs['logs']['loss']:.3f}")
