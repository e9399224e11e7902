"""What stands where in one variant: a map for each sublayer, or one for a run of whole layers; and refits.

Runs of whole layers: Ghosted Layers (arXiv:2605.15491) puts one map of the stream in the place of a run.
Both ways are tried on sequences that nothing was fitted on, and the better one is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pipeline.calib.compensation import forms, gathering, overlay, trial
from pipeline.calib.compensation.forms import Fit, Form
from pipeline.calib.compensation.gathering import PlaceMoments
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.projections import Projections
from pipeline.models import texts
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import SkipSet, Sublayer, UserError, format_layers, parse_layers

log = logging.getLogger(__name__)
Comparison = tuple[str, float, float]
"""(place, loss before, loss after)."""


@dataclass(frozen=True)
class VariantFit:
    """What was fitted for a variant.

    Attributes:
        fits: by place.
        overlay: what they make together.
        runs: (run, loss with a map for each sublayer, loss with one map).
        refits: (place, loss before, loss after).
    """

    fits: dict[MapPlace, Fit]
    overlay: Overlay
    runs: tuple[Comparison, ...] = ()
    refits: tuple[Comparison, ...] = ()


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
        self.moments, self.held_back = moments, held_back

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
        if form.rank != 0 or form.folds:  # biases of sublayers sum to that of their run
            for run in run_places(self.skip):
                plan = self._better(plan, run, form)
        for place, fitted in plan.fits.items():
            if fitted.note:
                log.warning("%s: %s, so that a bias stands there", place.name, fitted.note)
        return plan

    def refitted(self, plan: VariantFit, form: Form, tokens: texts.Tokens) -> VariantFit:
        """The plan with later maps fitted anew on what the variant computes, where that lowers the loss.

        Args:
            plan: of maps that fold nothing.
            form: theirs.
            tokens: [N, T], those of the moments.
        """
        places = sorted(plan.fits, key=lambda one: one.sublayers)
        refits: list[Comparison] = []
        loss = self.loss(plan.overlay)
        for number, place in enumerate(places[1:], start=1):
            earlier = self._part(plan, places[:number])
            with trial.installed(self.reference, earlier):
                moments = gathering.gather(self.reference, tokens, [place], lambda: None)[place]
            fitted = replace(forms.fit(moments, form), refitted=True)
            changed = {**plan.fits, place: fitted}
            candidate = replace(plan, fits=changed, overlay=self._composed(changed))
            after = self.loss(candidate.overlay)
            refits.append((place.name, loss, after))
            if after < loss:
                plan, loss = candidate, after
        return replace(plan, refits=tuple(refits))

    def loss(self, made: Overlay) -> float:
        """Nats a token on the sequences that choices are made by."""
        return trial.mean_loss(self.reference, self.held_back, made)

    def _part(self, plan: VariantFit, places: Iterable[MapPlace]) -> Overlay:
        """The overlay of some places alone; what else the variant leaves out is there."""
        skip = SkipSet()
        for place in places:
            skip |= _skipped(place)
        return Overlay(skip, {place: plan.overlay.maps[place] for place in places})

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


def _skipped(place: MapPlace) -> SkipSet:
    return SkipSet.of(place.kind, range(place.first, place.last + 1))
