"""What all forms of one variant's compensation share: the loaded model, the moments, the losses."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pipeline import store
from pipeline.calib.compensation import overlay, plan
from pipeline.calib.compensation.forms import Form
from pipeline.calib.compensation.moment_files import MEMORY, MomentFiles, MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.plan import Planner, VariantFit
from pipeline.calib.compensation.projections import Projections
from pipeline.calib.compensation.trial import Trial
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.reference import FAST, Reference
from pipeline.store import records
from pipeline.store.records import BareLossesRecord, BareLossesRequest
from pipeline.types import Provider, SkipSet


class Workbench:
    """One variant of one model, on one text; what takes time is made when it is asked for.

    Args:
        checkpoint: the whole model.
        skip: what the variant leaves out.
        text: the text.
        moments: a folder in which the moments must be.
        memory: bytes that moments may take.
        device: that the model runs on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        skip: SkipSet,
        text: MomentsText,
        moments: Path | None = None,
        memory: int = MEMORY,
        device: Provider = "cpu",
    ) -> None:
        self.checkpoint, self.skip, self.text, self.device = checkpoint, skip, text, device
        self.moments = MomentFiles(checkpoint, text, lambda: self.reference, moments, memory, device)
        self._plans: dict[str, VariantFit] = {}

    @cached_property
    def reference(self) -> Reference:
        """The whole model in fp32, with the quantised weights that are asked for.

        A map's target is what this model's own sublayer adds. To also mend what the stream has lost of the
        unquantised model's, all of it or half as a refit does, was tried, and harmed (docs/notes.md).
        """
        overlays = [self.text.quantised] if self.text.quantised else []
        return Reference(self.checkpoint.folder, overlays=overlays, load=FAST, device=self.device)

    @cached_property
    def projections(self) -> Projections:
        """Its projections."""
        return Projections(self.checkpoint, self.reference)

    @cached_property
    def planner(self) -> Planner:
        """Fits its maps; the moments are gathered now where they are missing."""
        self.moments.make([*plan.single_places(self.skip), *plan.run_places(self.skip)])
        return Planner(self.reference, self.skip, self.projections, self.moments.read, self.text.held_back)

    def bare_loss(self, skip: SkipSet) -> float:
        """Of a variant with nothing in the place of what it skips; measured once for all forms.

        Args:
            skip: what it leaves out.
        """
        record = self.kept("losses")
        samples, length = self.text.fitted.shape
        request = BareLossesRequest(
            **self.text.origin(self.checkpoint, record, self.device),
            samples=samples,
            length=length,
        )
        known = records.read_same(BareLossesRecord, record, request)
        if known is None:
            known = BareLossesRecord(**dict(request))
        if skip.name not in known.losses:
            known = known.replaced(losses={**known.losses, skip.name: self.reported(Overlay(skip))})
            store.write_json(record, known.plain())
        return known.losses[skip.name]

    def kept(self, name: str) -> Path:
        """Where a record of this model with these weights lies, on this device."""
        stem = ".".join(filter(None, (name, self.text.weights_name)))
        return store.measured_on(self.checkpoint.calib / "compensation" / f"{stem}.json", self.device)

    @property
    def can_fold(self) -> bool:
        """Whether any of its sublayers can be folded."""
        places = plan.single_places(self.skip)
        return any(not self.projections.refusal(overlay.root(place, self.skip)) for place in places)

    def reported(self, made: Overlay) -> float:
        """The loss on the sequences that nothing was fitted on and nothing chosen by."""
        return self._trial.loss(made)

    @cached_property
    def _trial(self) -> Trial:
        return Trial(self.reference, self.text.held_out)

    def plan(self, name: str) -> VariantFit:
        """The maps of a form, each fitted on the whole model."""
        if name not in self._plans:
            self._plans[name] = self.planner.plan(self._form(name))
        return self._plans[name]

    def refitted(self, name: str) -> VariantFit:
        """The maps of a form, the later ones fitted anew where that is better."""
        return self.planner.refitted(self.plan(name), self._form(name), self.text.fitted)

    def _form(self, name: str) -> Form:
        return Form.parse(name, self.checkpoint.config["hidden_size"])
