"""What rounds the weights of a model, one after another; and what its record says of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Array, Blocks
from pipeline.models.quantisation.names import METHOD, Quantisation
from pipeline.store.records import QuantisedRecord
from pipeline.types import UserError


class Rounding(Protocol):
    """A way to round a model's weights."""

    def __call__(self, name: str, weight: Array, bits: int, block_size: int, /) -> Blocks:
        """A weight in blocks.

        Args:
            name: of the weight.
            weight: [in, out] fp32.
            bits: 4 or 8.
            block_size: inputs that share a scale.

        Raises:
            UserError: it cannot be said in blocks.
        """
        ...

    def refuse_other(self, record: QuantisedRecord, path: Path, /) -> None:
        """Refuses weights that are there, and were rounded otherwise than is asked for.

        Args:
            record: of them.
            path: of their file.

        Raises:
            UserError: they were.
        """
        ...

    def fields(self, record: Path, /) -> dict[str, Any]:
        """What the record in the file `record` says of it, once everything is rounded."""
        ...


class Nearest:
    """Rounds to nearest: the same weights always give the same blocks, and there is nothing to say."""

    def __call__(self, _name: str, weight: Array, bits: int, block_size: int) -> Blocks:
        """As `blocks.rounded`."""
        return blocks.rounded(weight, bits, block_size)

    def refuse_other(self, record: QuantisedRecord, path: Path) -> None:
        """Refuses none."""

    def fields(self, _record: Path) -> dict[str, Any]:
        """Nothing."""
        return {}


def default(quantisation: Quantisation, path: Path) -> Rounding:
    """The rounding of a method that needs nothing but the weights.

    Args:
        quantisation: the form.
        path: of the file that lacks.

    Raises:
        UserError: the method reads a text, which whoever asked has none of.
    """
    if quantisation.method != METHOD:
        raise UserError(
            f"{path} is missing, damaged or of other weights; write it with `pipeline export "
            f"{path.parent.name} --precision {quantisation.name}`"
        )
    return Nearest()
