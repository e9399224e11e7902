"""What stands where in one variant: a map for each sublayer, or one for a run of whole layers; and refits.

Runs of whole layers: Ghosted Layers (arXiv:2605.15491) puts one map of the stream in the place of a run.
Both ways are tried on sequences that nothing was fitted on, and the better one is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.calib.compensation import forms, overlay
from pipeline.calib.compensation.forms import Fit, Form
from pipeline.calib.compensation.gathering import PlaceMoments, before
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.projections import Projections
from pipeline.calib.compensation.trial import Trial
from pipeline.calib.compensation.walk import Walk
from pipeline.models import texts
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet, Sublayer, UserError, format_layers, parse_layers

log = logging.getLogger(__name__)
GAP_SHARE = 0.5
"""How much of the way back to the whole model's stream refitted maps are to go."""
Comparison = tuple[str, float, float]
"""(place, loss before, loss after)."""


@dataclass(frozen=True)
class VariantFit:
    """What was fitted for a variant.

    Attributes:
        fits: by place.
        overlay: what they make together.
        runs: (run, loss with a map for each sublayer, loss with one map).
        refit_losses: with the maps as they were, and with refitted ones; the better were kept.
    """

    fits: dict[MapPlace, Fit]
    overlay: Overlay
    runs: tuple[Comparison, ...] = ()
    refit_losses: tuple[float, float] | None = None


def single_places(skip: SkipSet) -> list[MapPlace]:
    """A place for each skipped sublayer, in the order of the stream."""
    sublayers: list[Sublayer] = [(i, "attn") for i in skip.attention]
    sublayers += [(i, "mlp") for i in skip.mlp]
    return [MapPlace.of(one) for one in sorted(sublayers)]


def run_places(skip: SkipSet) -> list[MapPlace]:
    """A place for each run of consecutive whole layers that are skipped, as long as can be."""
    layers = set(skip.attention) & set(skip.mlp)
    runs = [parse_layers(run) for run in format_layers(layers).split("_")] if layers else []
    return [MapPlace(run[0], run[-1], "block") for run in runs]


class Planner:
    """Fits the maps of one variant.

    Args:
        reference: the whole model, in fp32.
        skip: what the variant leaves out.
        projections: of the whole model.
        moments: gives the moments of a place of the whole model.
        held_back: [n, T] sequences that choices are made by.
    """

    def __init__(
        self,
        reference: Reference,
        skip: SkipSet,
        projections: Projections,
        moments: Callable[[MapPlace], PlaceMoments],
        held_back: texts.Tokens,
    ) -> None:
        self.reference, self.skip, self.projections = reference, skip, projections
        self.moments, self._trial = moments, Trial(reference, held_back)

    def plan(self, form: Form) -> VariantFit:
        """The maps of a form, each place's fitted on the whole model's activations.

        Raises:
            UserError: nothing can be folded at all; as `forms.fit`.
        """
        fits = self._fits(single_places(self.skip), form)
        if form.folds and not any(fitted.fold for fitted in fits.values()):
            notes = sorted({fitted.note for fitted in fits.values()})
            raise UserError(
                f"{form.name}: no sublayer of {self.skip.name} can be folded ({notes[0]}); take bias, linear "
                "or a rank"
            )
        plan = VariantFit(fits, self._composed(fits))
        if form.has_runs:
            for run in run_places(self.skip):
                plan = self._better(plan, run, form)
        for place, fitted in plan.fits.items():
            if fitted.note:
                log.warning("%s: %s, so that a bias stands there", place.name, fitted.note)
        return plan

    def refitted(self, plan: VariantFit, form: Form, tokens: texts.Tokens) -> VariantFit:
        """The plan with its later maps fitted anew on what the variant computes, where that lowers the loss.

        They are to give what the sublayer gives on the variant's own stream, and half of what that stream
        lacks of the whole model's there. All of it, as GPTAQ has it (arXiv:2504.02692), helped less, and none
        of it not at all (docs/notes.md).

        Args:
            plan: of maps that were fitted on the whole model.
            form: theirs.
            tokens: [N, T], those of the moments.
        """
        fits = self._refits(plan, form, tokens)
        candidate = replace(plan, fits=fits, overlay=self._composed(fits))
        before, after = self.loss(plan.overlay), self.loss(candidate.overlay)
        return replace(candidate if after < before else plan, refit_losses=(before, after))

    def _refits(self, plan: VariantFit, form: Form, tokens: texts.Tokens) -> dict[MapPlace, Fit]:
        """All fits of a plan; those behind the first place are new, but for folds onto other folds."""
        width = self.reference.model.config.hidden_size
        whole, variant = Walk(self.reference, tokens), Walk(self.reference, tokens)
        first, *later = sorted(plan.fits, key=lambda one: one.sublayers)
        fits = {first: plan.fits[first]}
        for place in later:
            writer = before(place.sublayers[0])
            if plan.fits[place].fold and writer is not None and writer in self.skip:
                fits[place] = plan.fits[place]  # what it would read is no output of a projection
                continue
            moments, earlier = PlaceMoments.empty(place, width), self._part(fits)
            wanted = [rows.x + rows.f for rows in whole.to(place, Overlay(BASE))]
            end = overlay.root(place, self.skip) if form.folds else None
            for number, rows in enumerate(variant.to(place, earlier, end[0] if end else None)):
                gap = wanted[number] - (rows.x + rows.f)
                moments.take(replace(rows, f=rows.f + GAP_SHARE * gap), number, len(tokens))
            fitted = forms.fit(moments, form.unfolded if plan.fits[place].note else form)
            fits[place] = replace(fitted, refitted=True, note=plan.fits[place].note)
        return fits

    def loss(self, made: Overlay) -> float:
        """Nats a token on the sequences that choices are made by."""
        return self._trial.loss(made)

    def _part(self, fits: dict[MapPlace, Fit]) -> Overlay:
        """The overlay of some places alone; what else the variant leaves out is there."""
        skip = SkipSet()
        for place in fits:
            skip |= SkipSet.of(place.kind, range(place.first, place.last + 1))
        return overlay.compose(skip, fits, self.projections)

    def _better(self, plan: VariantFit, run: MapPlace, form: Form) -> VariantFit:
        """The plan, or that with one map for a run, whichever has the lower loss."""
        fits = {
            place: one for place, one in plan.fits.items() if not set(place.sublayers) <= set(run.sublayers)
        }
        fits |= self._fits([run], form)
        candidate = replace(plan, fits=fits, overlay=self._composed(fits))
        before, after = self.loss(plan.overlay), self.loss(candidate.overlay)
        runs = (*plan.runs, (run.name, before, after))
        return replace(candidate if after < before else plan, runs=runs)

    def _fits(self, places: list[MapPlace], form: Form) -> dict[MapPlace, Fit]:
        fits = {}
        for place in places:
            why = self.projections.refusal(overlay.root(place, self.skip)) if form.folds else ""
            fits[place] = replace(forms.fit(self.moments(place), form.unfolded if why else form), note=why)
        return fits

    def _composed(self, fits: dict[MapPlace, Fit]) -> Overlay:
        return overlay.compose(self.skip, fits, self.projections)
