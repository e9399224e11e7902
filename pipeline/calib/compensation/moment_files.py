"""Moments on disk, calib/<model>/moments/<place>.safetensors: gathered once, shared by variants and forms.

A file is of one model and one text, which its record says. One that is of others is gathered again. Those of
a model on CUDA lie beside those of the CPU, <place>.cuda.safetensors; those of a model with quantised weights
in a folder of their form, moments/int4-b64-rtn/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib.compensation import gathering
from pipeline.calib.compensation.gathering import PlaceMoments
from pipeline.calib.compensation.maps import Moments
from pipeline.models import safetensors_index, texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.store import records
from pipeline.store.paths import QUANTISED
from pipeline.store.records import MomentsRecord, MomentsRequest
from pipeline.types import Provider, UserError, shown

log = logging.getLogger(__name__)
HELD_OUT = 16
"""Sequences on which losses are reported; in no moment, and nothing is chosen by them."""
MEMORY = 4_000_000_000
"""Bytes that moments may take while they are gathered."""


@dataclass(frozen=True)
class MomentsText:
    """The text that moments are of, and the text that their maps are judged by.

    Attributes:
        fitted: [N, T] ids; those that are held back are in no sum.
        held_out: [HELD_OUT, T] ids.
        text_input: as it was given.
        source: where it came from.
        quantised: file of the quantised weights that the model holds; None: its own.
    """

    fitted: texts.Tokens
    held_out: texts.Tokens
    text_input: texts.TextInput
    source: records.TextSource
    quantised: Path | None = None

    @classmethod
    def cut(
        cls,
        checkpoint: Checkpoint,
        text_input: texts.TextInput,
        samples: int,
        length: int,
        quantised: Path | None = None,
    ) -> MomentsText:
        """Reads a text.

        Args:
            checkpoint: whose tokenizer is used.
            text_input: what text.
            samples: N.
            length: T.
            quantised: file of the model's quantised weights, where it is to hold those.

        Raises:
            UserError: fewer tokens than a map has unknowns, or too little text.
        """
        refuse_too_few(checkpoint.config["hidden_size"], samples, length)
        rows, source = texts.cut(checkpoint.folder, text_input, length, samples + HELD_OUT)
        return cls(rows[:samples], rows[samples:], text_input, source, quantised)

    def origin(self, checkpoint: Checkpoint, record: Path, device: Provider = "cpu") -> dict[str, Any]:
        """The fields of a record in the file `record` that say what model it is of, where, on what text."""
        return {
            "device": device,
            "model": checkpoint.model,
            "weights": checkpoint.identity,
            "contents": checkpoint.contents,
            "texts": self.source.replaced(origin=self.text_input.origin(record)),
            "quantised": store.weights.state(self.quantised, full=True).sha256 if self.quantised else None,
        }

    @property
    def weights_name(self) -> str:
        """'int4-b64-rtn' of quantised weights, '' of the model's own: what is kept of each lies apart."""
        return self.quantised.stem.removeprefix(QUANTISED) if self.quantised else ""

    @property
    def held_back(self) -> texts.Tokens:
        """[n, T]: sequences that nothing is fitted on; ridge, form and refit are chosen by them."""
        return self.fitted[gathering.held_back(len(self.fitted))]


def refuse_too_few(width: int, samples: int, length: int) -> None:
    """Refuses a text with fewer tokens than 2 · C, before anything is run.

    Args:
        width: C.
        samples: N.
        length: T.
    """
    if samples < 2 or length < 2:
        raise UserError("--samples and --length must be at least 2")
    held_count = len(gathering.held_back(samples))
    fitted = (samples - held_count) * (length - 1)
    if fitted >= 2 * width:
        return
    rows = -(-2 * width // (length - 1))
    enough = next(n for n in range(rows, 2 * rows + 2) if n - len(gathering.held_back(n)) >= rows)
    raise UserError(
        f"{samples} sequences of {length} tokens give {fitted} to fit on: {held_count} held back, and the "
        f"first token of each may count for nothing. A map of {width} by {width} numbers needs "
        f"{2 * width}: take --samples {max(enough, 2)} or more"
    )


class MomentFiles:
    """The moments of one checkpoint on one text.

    Args:
        checkpoint: the whole model.
        text: the text.
        open_reference: gives the whole model, where something must be gathered.
        given: a folder in which they must be; None: calib/<model>/moments, where missing ones are gathered.
        memory: bytes.
        device: that the reference is on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: MomentsText,
        open_reference: Callable[[], Reference],
        given: Path | None = None,
        memory: int = MEMORY,
        device: Provider = "cpu",
    ) -> None:
        self.checkpoint, self.text, self.open_reference = checkpoint, text, open_reference
        self.given, self.memory, self.device = given, memory, device
        self.folder = given or checkpoint.calib / "moments" / text.weights_name

    def make(self, places: Iterable[MapPlace]) -> None:
        """Gathers what is missing, in as few passes as the memory allows; each pass is kept once it is done.

        Raises:
            UserError: as `gathering.gather`; `given` lacks one, or has one of another model or text.
        """
        wanted = sorted(set(places))
        if self.given:
            self._refuse_others(wanted)
            return
        with store.lock(self.folder):
            store.sweep_temporaries(self.folder)
            missing = [place for place in wanted if self._known(place) is None]
            if missing:
                self._gather(missing)

    def read(self, place: MapPlace) -> PlaceMoments:
        """The moments of a place that has been made.

        Raises:
            UserError: the file is none of moments, though its record has its digest.
        """
        record = records.read(MomentsRecord, self.record(place))
        try:
            tensors = safetensors_index.load(self.file(place), "np")
        except UserError as error:
            raise UserError(f"{self.file(place)} cannot be read ({error}); remove it") from None
        self._refuse_odd(place, {name: tensor.shape for name, tensor in tensors.items()})
        folds = "folded.gram" in tensors
        return PlaceMoments(
            Moments(tensors["mapped.gram"], tensors["mapped.cross"]),
            Moments(tensors["folded.gram"], tensors["folded.cross"]) if folds else None,
            tensors["between"] if folds else None,
            record.energy,
            record.stream,
            {name[5:]: rows for name, rows in tensors.items() if name.startswith("held.")},
        )

    def file(self, place: MapPlace) -> Path:
        """Where the sums of a place lie."""
        return store.measured_on(self.folder / f"{place.name}.safetensors", self.device)

    def record(self, place: MapPlace) -> Path:
        """Where their record lies."""
        return store.measured_on(self.folder / f"{place.name}.json", self.device)

    def _refuse_odd(self, place: MapPlace, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuses tensors that are not those of a place's moments, by name → shape."""
        width = self.checkpoint.config["hidden_size"]
        sums = ["mapped"] if gathering.before(place.sublayers[0]) is None else ["mapped", "folded"]
        wanted = {f"{name}.gram": (width + 1, width + 1) for name in sums}
        wanted |= {f"{name}.cross": (width + 1, width) for name in sums}
        wanted |= {"between": (width + 1, width)} if "folded" in sums else {}
        rows = shapes.get("held.f", (0,))[0]
        wanted |= {f"held.{name}": (rows, width) for name in ("hf" if len(sums) == 1 else "hyf")}
        if shapes != wanted:
            raise UserError(f"{self.file(place)} does not hold the moments of {place.name}; remove it")

    def _request(self, place: MapPlace) -> MomentsRequest:
        samples, length = self.text.fitted.shape
        return MomentsRequest(
            **self.text.origin(self.checkpoint, self.record(place), self.device),
            place=place.name,
            samples=samples,
            length=length,
            held_count=len(gathering.held_back(samples)),
            outlier=gathering.OUTLIER,
        )

    def _known(self, place: MapPlace) -> MomentsRecord | None:
        """The record of moments that are there, whole, and of just this model and text."""
        record = records.read_same(MomentsRecord, self.record(place), self._request(place))
        file = self.file(place)
        whole = record is not None and file.is_file() and store.sha256(file) == record.sha256
        return record if whole else None

    def _gather(self, places: list[MapPlace]) -> None:
        reference = self.open_reference()
        groups = gathering.groups(places, reference.model.config.hidden_size, self.memory)
        if stale := [place.name for place in places if self.record(place).is_file()]:
            log.warning(
                "the moments of %s are of other weights, tokens, --samples or --length, or damaged: gathered "
                "again",
                shown(stale),
            )
        with Progress(console=Console(stderr=True), transient=True) as bar:
            samples, length = self.text.fitted.shape
            what = f"moments of {len(places)} sublayers, sequences of {length} tokens"
            task = bar.add_task(what, total=len(groups) * samples)
            for group in groups:
                gathered = gathering.gather(reference, self.text.fitted, group, lambda: bar.advance(task))
                for place, moments in gathered.items():
                    self._write(place, moments)

    def _write(self, place: MapPlace, moments: PlaceMoments) -> None:
        """Writes the sums, then the record that names their digest."""
        from safetensors.numpy import save_file

        tensors = {"mapped.gram": moments.mapped.gram, "mapped.cross": moments.mapped.cross}
        if moments.folded is not None and moments.between is not None:
            tensors |= {"folded.gram": moments.folded.gram, "folded.cross": moments.folded.cross}
            tensors["between"] = moments.between
        tensors |= {f"held.{name}": rows for name, rows in moments.held_tokens.items()}
        self.record(place).unlink(missing_ok=True)
        with store.atomic(self.file(place)) as temporary:
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary)
        record = MomentsRecord(
            **dict(self._request(place)),
            tokens=moments.mapped.tokens,
            energy=moments.energy,
            stream=moments.stream,
            sha256=store.sha256(self.file(place)),
        )
        store.write_json(self.record(place), record.plain())

    def _refuse_others(self, places: list[MapPlace]) -> None:
        """Refuses moments that were named and are not of this model and this text."""
        for place in places:
            if not self.record(place).is_file():
                raise UserError(
                    f"{self.folder} has no moments of {place.name} ({self.record(place).name}); leave "
                    "--moments out, and they are gathered"
                )
            record = records.read(MomentsRecord, self.record(place))
            request = self._request(place)
            if (record.weights, record.contents) != (request.weights, request.contents):
                raise UserError(
                    f"{self.record(place)} is of other weights than {self.checkpoint.folder}; "
                    "leave --moments out to gather them"
                )
            if not record.is_for(request.replaced(model=record.model)):
                raise UserError(
                    f"{self.record(place)} is of another text, or of other --samples or --length; name the "
                    "same text, or leave --moments out to gather them"
                )
            if not self.file(place).is_file() or store.sha256(self.file(place)) != record.sha256:
                raise UserError(
                    f"{self.file(place)} is missing or not what {self.record(place).name} describes"
                )
