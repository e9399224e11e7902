"""How `export --method gptq` rounds: by second moments of the layers' inputs, measured where they lack."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.calib.selectors import SHORT
from pipeline.models import tensor_names, texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.quantisation import descent
from pipeline.models.quantisation.blocks import Array, Blocks
from pipeline.models.quantisation.gptq import gptq
from pipeline.store.records import QuantisedRecord, RoundedOn
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.calib.compensation.moment_files import MomentsText
    from pipeline.calib.hessian_files import HessianFiles

log = logging.getLogger(__name__)
LENGTH = 256
"""Tokens of a sequence."""


class GptqRounding:
    """Rounds a checkpoint's weights with GPTQ (`models/quantisation/rounding.Rounding`).

    Nothing is read or measured before the first weight is to be rounded.

    Args:
        checkpoint: the model.
        text_input: the text that moments are of.
        samples: sequences of it; None: as many as missing similarity statistics are measured on.
        length: tokens of each; None: LENGTH.

    Raises:
        UserError: a number is out of range; a file of the text is missing, or no text.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text_input: texts.TextInput = texts.OWN,
        samples: int | None = None,
        length: int | None = None,
    ) -> None:
        self.checkpoint, self.text_input = checkpoint, text_input
        self._asked = {"samples": samples, "length": length}
        self.samples, self.length = (
            SHORT if samples is None else samples,
            LENGTH if length is None else length,
        )
        if self.samples < 1 or self.length < 2:
            raise UserError("--samples must be at least 1 and --length at least 2")
        self._text_digest = None if text_input.dataset else text_input.read(0)[1].sha256

    def __call__(self, name: str, weight: Array, bits: int, block_size: int) -> Blocks:
        """A weight in blocks.

        Raises:
            UserError: as `gptq`; too little text, or activations that are not finite.
        """
        moments = self._moments.of(name, len(weight))
        rounded = gptq(weight, moments, bits, block_size)
        return descent.improved(weight, rounded, moments, bits) if bits == 4 else rounded

    def refuse_other(self, record: QuantisedRecord, path: Path) -> None:
        """Refuses weights that were rounded on another text, or more or less of it, than was asked for.

        A dataset is the same by its name: it is not streamed again for that.
        """
        known = record.rounded_on
        is_other = known is None or any(
            number not in (None, getattr(known, name)) for name, number in self._asked.items()
        )
        if known is not None and self.text_input.dataset:
            is_other |= known.texts.origin != self.text_input.dataset
        elif known is not None and self.text_input != texts.OWN:
            is_other |= known.texts.sha256 != self._text_digest
        if is_other:
            where = known.words if known else "an unknown text"
            raise UserError(
                f"{path} was rounded on {where}, not on what --texts, --dataset, --samples and "
                "--length say; leave them out to use it as it is, or remove it and export again"
            )

    def fields(self, record: Path) -> dict[str, Any]:
        """The text, as the record in the file `record` names it."""
        source = self._text.source.replaced(origin=self.text_input.origin(record))
        on = RoundedOn(texts=source, samples=self.samples, length=self.length)
        return {"rounded_on": on.plain()}

    @cached_property
    def _text(self) -> MomentsText:
        """The text as tokens; none is held back: GPTQ chooses nothing by it."""
        from pipeline.calib.compensation.moment_files import MomentsText  # loads torch

        rows, source = texts.cut(self.checkpoint.folder, self.text_input, self.length, self.samples)
        return MomentsText(rows, rows[:0], self.text_input, source)

    @cached_property
    def _moments(self) -> HessianFiles:
        """The second moments, measured now where they are not there."""
        from pipeline.calib.hessian_files import HessianFiles  # so does this: only where a model runs
        from pipeline.models.reference import FAST, Reference

        def reference() -> Reference:
            size = f"{self.samples} × {self.length} tokens"
            log.info("measuring what the linear layers of %s read, once (%s)", self.checkpoint.model, size)
            layers = self.checkpoint.config["num_hidden_layers"]
            gone = tensor_names.gone(self.checkpoint.tensors, layers)
            return Reference(self.checkpoint.folder, gone, load=FAST)

        files = HessianFiles(self.checkpoint, self._text, reference)
        files.make()
        return files
