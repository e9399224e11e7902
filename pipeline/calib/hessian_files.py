"""Second moments of linear layers' inputs on disk: calib/<model>/hessians/layer5.safetensors, …, head.

A file is of one model and one text, which its record says. All are gathered in one pass: where one is
missing, damaged, or of another model or text, all are gathered anew. Those of a model on CUDA lie beside
those of the CPU, layer5.cuda.safetensors. In float32 they take 4 · (3 C² + F²) bytes a layer, F the width of
its MLP: those of a 7B take 22 GB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib import hessians
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.models import safetensors_index, tensor_names
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.reference import Reference
from pipeline.store import records
from pipeline.store.records import HessiansRecord, HessiansRequest
from pipeline.types import Provider, UserError

log = logging.getLogger(__name__)


class HessianFiles:
    """The second moments of one checkpoint's linear layers on one text.

    Args:
        checkpoint: the whole model.
        text: the text.
        open_reference: gives the whole model, where something must be gathered.
        device: that the reference is on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: MomentsText,
        open_reference: Callable[[], Reference],
        device: Provider = "cpu",
    ) -> None:
        self.checkpoint, self.text, self.open_reference = checkpoint, text, open_reference
        self.device = device
        self.folder = checkpoint.calib / "hessians"

    def make(self) -> None:
        """Gathers all of them, unless they are there; each layer's is kept once it is done.

        Raises:
            UserError: activations that are not finite.
        """
        places = hessians.places(self.checkpoint.config["num_hidden_layers"])
        with store.lock(self.folder):
            store.sweep_temporaries(self.folder)
            if not all(map(self._is_known, places)):
                self._gather(places)

    def of(self, name: str, width: int) -> npt.NDArray[np.float32]:
        """XᵀX [in, in] of the inputs X of a linear layer, once they are made.

        Args:
            name: of its weight.
            width: in.

        Raises:
            UserError: nothing is known of such a weight, or the file is none of these, though its record has
                its digest.
        """
        layer = tensor_names.layer_of(name)
        place = hessians.HEAD if layer is None else f"layer{layer}"
        record = records.read(HessiansRecord, self.record(place))
        if name not in record.readers:
            raise UserError(f"{self.record(place)} has nothing of {name:.200}; remove it")
        with safetensors_index.opened(self.file(place), "np") as tensors:
            if record.readers[name] not in tensors.keys():  # noqa: SIM118 - no mapping
                raise UserError(f"{self.file(place)} has nothing of {name:.200}; remove it")
            total: npt.NDArray[np.float32] = tensors.get_tensor(record.readers[name])
        if total.shape != (width, width) or total.dtype != np.float32:
            raise UserError(f"{self.file(place)} holds no second moment of {name:.200}; remove it")
        return total

    def file(self, place: str) -> Path:
        """Where the sums of a layer or of the head lie."""
        return store.measured_on(self.folder / f"{place}.safetensors", self.device)

    def record(self, place: str) -> Path:
        """Where their record lies."""
        return store.measured_on(self.folder / f"{place}.json", self.device)

    def _request(self, place: str) -> HessiansRequest:
        samples, length = self.text.fitted.shape
        origin = self.text.origin(self.checkpoint, self.record(place), self.device)
        return HessiansRequest(**origin, place=place, samples=samples, length=length, sink=hessians.SINK)

    def _is_known(self, place: str) -> bool:
        """Whether sums are there, whole, and of just this model and text."""
        record = records.read_same(HessiansRecord, self.record(place), self._request(place))
        file = self.file(place)
        return record is not None and file.is_file() and store.sha256(file) == record.sha256

    def _gather(self, places: list[str]) -> None:
        if any(self.record(place).is_file() for place in places):
            log.warning(
                "%s is of other weights, tokens, --samples or --length, or damaged: gathered again",
                self.folder,
            )
        samples, length = self.text.fitted.shape
        with Progress(console=Console(stderr=True), transient=True) as bar:
            what = f"inputs of linear layers, sequences of {length} tokens"
            task = bar.add_task(what, total=len(places) * samples)
            for place, sums in hessians.gather(
                self.open_reference(), self.text.fitted, lambda: bar.advance(task)
            ):
                self._write(place, sums)

    def _write(self, place: str, sums: hessians.Hessians) -> None:
        """Writes the sums, then the record that names their digest."""
        from safetensors.numpy import save_file

        arrays = sums.arrays()
        self.record(place).unlink(missing_ok=True)
        with store.atomic(self.file(place)) as temporary:
            save_file(arrays, temporary)
        request = self._request(place)
        record = HessiansRecord(**dict(request), readers=sums.readers, sha256=store.sha256(self.file(place)))
        store.write_json(self.record(place), record.plain())
