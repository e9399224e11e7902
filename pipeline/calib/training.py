"""The training loop of an adapter: transformers' own, with its schedule, its checkpoints and its resumption.

Legend: N sequences, T tokens.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from pipeline import store
from pipeline.calib.healer import Healer
from pipeline.models import texts
from pipeline.store.records import HealSettings
from pipeline.types import Provider, UserError

SAVED_EVERY = 20
"""Steps between two checkpoints."""


def train(healer: Healer, tokens: texts.Tokens, partial: Path) -> list[float]:
    """Trains the healer's student; goes on from the last checkpoint in `partial`.

    Args:
        healer: student, teacher and settings.
        tokens: [N, T] token ids.
        partial: folder of the checkpoints.

    Returns:
        The loss of each step, nats a token and what the settings add.
    """
    rows = torch.from_numpy(tokens)
    columns = (
        TextColumn("healing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        watcher = _Watcher(bar, healer.settings.steps)
        trainer = _Trainer(
            model=healer.student,
            args=_arguments(healer.settings, partial, healer.reference.device),
            callbacks=[watcher],
            train_dataset=[{"input_ids": row} for row in rows],
        )
        trainer.healer = healer
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last_whole(partial))
    return watcher.losses


def _last_whole(partial: Path) -> str | None:
    """The last checkpoint that was written to its end; those that were not are removed."""
    while last := get_last_checkpoint(str(partial)):  # type: ignore[no-untyped-call]
        try:
            store.read_json(Path(last) / TRAINER_STATE_NAME)  # the trainer writes it last
        except UserError:
            shutil.rmtree(last)
        else:
            return str(last)
    return None


def _arguments(settings: HealSettings, folder: Path, device: Provider) -> TrainingArguments:
    """Of transformers' trainer, which takes every GPU that it sees, if nobody says otherwise.

    Its own mixed precision is left alone: it wraps the model's forward, which the objective does not call.
    """
    on_gpu = device == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup, settings.steps - 1),
        weight_decay=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        save_steps=SAVED_EVERY,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    arguments._n_gpu = int(on_gpu)  # the healer's model is on one
    return arguments


class _Trainer(Trainer):
    """transformers' trainer on the healer's objective."""

    healer: Healer

    def compute_loss(self, _model: Any, inputs: dict[str, Any], *_args: Any, **_kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return self.healer.objective(inputs["input_ids"])


class _Watcher(TrainerCallback):
    """Shows steps and loss, and keeps the losses."""

    def __init__(self, bar: Progress, steps: int) -> None:
        self.bar, self.losses = bar, list[float]()
        self.task = bar.add_task("healing", total=steps, loss="")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - transformers' own names
        self.losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
        if "loss" in kwargs.get("logs", {}):
            self.bar.update(self.task, completed=state.global_step, loss=f"loss {kwargs['logs']['loss']:.3f}")
