"""What `pipeline ship --to gguf` says of the file that it wrote."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.types import format_layers


@dataclass(frozen=True, slots=True)
class GgufShipment:
    """A variant as a GGUF file.

    Attributes:
        file: that was written.
        variant: its name.
        architecture: llama.cpp's name.
        type: of its matrices; 'source': as in the GGUF that the model came from; 'q4_0' or 'q8_0' of a graph
            whose weights are in blocks.
        bytes: of the file.
        num_layers: L of the whole model.
        layers: for each layer of the file, the layer of the whole model.
        copied, converted, new: tensors that were copied byte for byte from that GGUF; that were converted;
            that the model has not.
        checked: the graph has passed its check.
        written: it was not there before.
        notes: what a person should know of it.
        kept: tensors in the graph's own blocks.
        rest: the type of what such a graph reads in no blocks; None of others.
    """

    file: str
    variant: str
    architecture: str
    type: str
    bytes: int
    num_layers: int
    layers: tuple[int, ...]
    copied: int
    converted: int
    new: int
    checked: bool
    written: bool
    notes: tuple[str, ...] = ()
    kept: int = 0
    rest: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "layers": list(self.layers), "notes": list(self.notes)}

    def described(self) -> str:
        """For a person, in a few lines."""
        kept = format_layers(self.layers).replace("_", ", ")
        counts = {
            "in the graph's own blocks": self.kept,
            "copied byte for byte": self.copied,
            "converted": self.converted,
            "added": self.new,
        }
        tensors = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        lines = [
            f"{self.file}: {self.variant}, architecture {self.architecture}, type {self.type}"
            f"{f' (what is in no blocks: {self.rest})' if self.rest else ''}, "
            f"{self.bytes / 1e6:,.1f} MB" + ("" if self.written else "; nothing to do, it is there"),
            f"{len(self.layers)} layers, of layers {kept} of {self.num_layers}; tensors: {tensors}",
            "the graph has passed its check"
            if self.checked
            else "the graph has passed no check (--unchecked)",
            *(f"note: {note}" for note in self.notes),
            f"run it: llama-cli -m {shlex.quote(self.file)}",
        ]
        return "\n".join(lines)
