"""The options that say on what text a command measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import extras
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint
    from pipeline.models.quantisation.names import Quantisation
    from pipeline.models.quantisation.rounding import Rounding
    from pipeline.models.texts import TextInput

Texts = Annotated[
    list[Path] | None, typer.Option(help=".txt, or .jsonl with a column `text`; repeat for several.")
]
Dataset = Annotated[str | None, typer.Option(help="Of the hub, streamed: allenai/c4:en:validation.")]


def text_input(texts: list[Path] | None, dataset: str | None, command: str) -> TextInput:
    """What --texts and --dataset name, for a command that is called so."""
    from pipeline.models.texts import TextInput

    if dataset:
        extras.needs("score", f"{command} --dataset")
    return TextInput(tuple(texts or ()), dataset)


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """The text that a method of rounding measures on, as it was typed; None where nothing was.

    Attributes:
        texts, dataset: the text.
        samples, length: sequences, tokens of each.
    """

    texts: list[Path] | None
    dataset: str | None
    samples: int | None
    length: int | None

    def belong_to(self, weights: Quantisation | None) -> None:
        """Refuses a text where nothing is measured.

        Args:
            weights: how they are kept.
        """
        options = {
            "--texts": self.texts or None,
            "--dataset": self.dataset,
            "--samples": self.samples,
            "--length": self.length,
        }
        typed = next((name for name, value in options.items() if value is not None), None)
        if typed and not (weights and weights.reads_text):
            raise UserError(f"{typed} is of --method gptq, which measures on text; leave it out")

    def rounding(self, source: Checkpoint, weights: Quantisation | None) -> Rounding | None:
        """What rounds the weights; None for to nearest, or where they stay as they are."""
        if weights is None or not weights.reads_text:
            return None
        from pipeline.calib.gptq_rounding import GptqRounding

        text = text_input(self.texts, self.dataset, "pipeline export")
        return GptqRounding(source, text, self.samples, self.length)
