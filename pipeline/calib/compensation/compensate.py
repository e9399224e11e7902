"""Stage: a variant → the overlay of what stands in for the sublayers that it skips, in closed form.

That linear maps in the place of removed blocks heal much of the damage: ReplaceMe (arXiv:2505.02819),
LinearPatch, Prune&Comp (arXiv:2507.18212), Ghosted Layers (arXiv:2605.15491); here, of single sublayers too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.calib.compensation import moment_files
from pipeline.calib.compensation import plan as plans
from pipeline.calib.compensation.forms import AUTO, Fit, Form
from pipeline.calib.compensation.plan import VariantFit
from pipeline.calib.compensation.workbench import Workbench
from pipeline.models import costs, texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.quantisation.names import Quantisation
from pipeline.store import records
from pipeline.store.records import (
    AutoRecord,
    AutoRequest,
    CompensationLosses,
    CompensationRecord,
    CompensationRequest,
    CompensationSettings,
    MapRecord,
)
from pipeline.types import BASE, Provider, SkipSet, UserError, Variant

log = logging.getLogger(__name__)
RANKS = (16, 64)
"""Those that `auto` tries."""


@dataclass(frozen=True, slots=True)
class Means:
    """Where and with what a compensation is made; only the device changes the numbers, in their last digits.

    Attributes:
        folder: where the overlay goes; None: beside the checkpoint.
        memory: bytes that moments may take while they are gathered.
        moments: a folder in which the moments must be; None: gathered where they are missing.
        budget_params: numbers that the maps of `auto` may hold.
        budget_ms: milliseconds that a pass may take with what `auto` chooses.
        milliseconds: measures that, given an overlay and its form.
        timed_on: the graph and the machine that they are of.
        folds: whether the graph can read folded weights.
        quantisation: of the weights that the graph reads, whose file lies beside the checkpoint.
        device: that the model runs on.
    """

    folder: Path | None = None
    memory: int = moment_files.MEMORY
    moments: Path | None = None
    budget_params: int | None = None
    budget_ms: float | None = None
    milliseconds: Callable[[Path, str], float] | None = None
    timed_on: str | None = None
    folds: bool = True
    quantisation: str | None = None
    device: Provider = "cpu"


def compensate(
    checkpoint: Checkpoint,
    skip: SkipSet,
    settings: CompensationSettings,
    text_input: texts.TextInput = texts.OWN,
    force: bool = False,
    means: Means = Means(),
) -> Path:
    """Writes a variant's overlay, or finds it made with these settings.

    Args:
        checkpoint: the whole model.
        skip: what the variant leaves out.
        settings: what is to stand in for it.
        text_input: what text it is fitted on.
        force: make again what is there and matches.
        means: where and with what.

    Returns:
        graphs/<model>/<skip>~<form>.safetensors, fitted on quantised weights <skip>~<form>.int4.safetensors;
        its record lies beside it.

    Raises:
        UserError: nothing is left out, no such form, a rank above C, too little text, moments of another
            model or text, activations that are not finite, or nothing that can be folded.
    """
    _check(checkpoint, skip, settings, means)
    quantised = (
        checkpoint.folder / Quantisation.parse(means.quantisation).file if means.quantisation else None
    )
    sizes = (settings.samples, settings.length)
    text = moment_files.MomentsText.cut(checkpoint, text_input, *sizes, quantised)
    bench = Workbench(checkpoint, skip, text, means.moments, means.memory, means.device)
    variant = Variant(checkpoint.model, skip).file
    with store.lock(checkpoint.calib / variant, make=False):
        if settings.form != AUTO:
            return _made(bench, settings, means, force)
        form = _chosen(bench, settings, means, force)
        return _made(bench, settings.replaced(form=form), means, force)


def gather(
    checkpoint: Checkpoint,
    skips: Iterable[SkipSet],
    settings: CompensationSettings,
    text_input: texts.TextInput = texts.OWN,
    device: Provider = "cpu",
) -> None:
    """Gathers what the compensations of several variants need, in as few passes as one of them would take.

    Args:
        checkpoint: the whole model.
        skips: what the variants leave out.
        settings: how much text they will be fitted on.
        text_input: what text.
        device: that the model runs on.

    Raises:
        UserError: as `MomentsText.cut` and `MomentFiles.make`.
    """
    text = moment_files.MomentsText.cut(checkpoint, text_input, settings.samples, settings.length)
    bench = Workbench(checkpoint, BASE, text, device=device)
    bench.moments.make(
        place for skip in skips for place in (*plans.single_places(skip), *plans.run_places(skip))
    )


def record_of(overlay: Path) -> CompensationRecord:
    """The record beside an overlay."""
    return records.read(CompensationRecord, store.sidecar_path(overlay))


def _check(checkpoint: Checkpoint, skip: SkipSet, settings: CompensationSettings, means: Means) -> None:
    """Refuses what can be refused before anything is run."""
    if not skip:
        raise UserError("base skips nothing: there is nothing to compensate; name a variant that was cut")
    layers = costs.sizes(checkpoint.config).layers
    skip.within(layers)
    if settings.form == AUTO:
        if means.budget_ms is not None and means.milliseconds is None:
            raise UserError("--budget-ms needs a graph that is timed")
        return
    if means.budget_params is not None or means.budget_ms is not None:
        raise UserError("--budget-params and --budget-ms are for --with auto")
    Form.parse(settings.form, checkpoint.config["hidden_size"])


def _overlay_path(bench: Workbench, form: str, means: Means) -> Path:
    variant = Variant(bench.checkpoint.model, bench.skip, compensation=form)
    return store.overlay_path(means.folder or bench.checkpoint.folder, variant.name, means.quantisation)


def _made(bench: Workbench, settings: CompensationSettings, means: Means, force: bool) -> Path:
    """The overlay of one form, written where it is not there yet."""
    path = _overlay_path(bench, settings.form, means)
    record = store.sidecar_path(path)
    origin = bench.text.origin(bench.checkpoint, record, bench.device)
    request = CompensationRequest(**origin, variant=bench.skip.name, settings=settings)
    known = records.read_same(CompensationRecord, record, request)
    if not force and known and path.is_file() and store.sha256(path) == known.sha256:
        return path
    started = time.monotonic()
    plan = bench.refitted(settings.form) if settings.refit else bench.plan(settings.form)
    losses = CompensationLosses(
        base=bench.bare_loss(BASE),
        none=bench.bare_loss(bench.skip),
        compensated=bench.reported(plan.overlay),
    )
    record.unlink(missing_ok=True)
    plan.overlay.write(path)
    seconds = time.monotonic() - started
    store.write_json(record, _record(request, plan, losses, seconds, store.sha256(path)).plain())
    return path


def _record(
    request: CompensationRequest, plan: VariantFit, losses: CompensationLosses, seconds: float, sha256: str
) -> CompensationRecord:
    damage = losses.none - losses.base
    return CompensationRecord(
        **dict(request),
        losses=losses,
        regained_share=(losses.none - losses.compensated) / damage if damage > 0 else None,
        parameters=plan.overlay.parameters,
        maps=tuple(_map_record(place, one, plan) for place, one in sorted(plan.fits.items())),
        runs=plan.runs,
        refit_losses=plan.refit_losses,
        seconds=seconds,
        tools=store.versions("torch", "transformers", "scipy"),
        sha256=sha256,
    )


def _map_record(place: MapPlace, fitted: Fit, plan: VariantFit) -> MapRecord:
    return MapRecord(
        place=place.name,
        form=fitted.form,
        ridge=fitted.ridge,
        fold_ridge=fitted.fold_ridge,
        folded_into=plan.overlay.folded_into.get(place),
        r2=fitted.r2,
        refitted=fitted.refitted,
        note=fitted.note,
    )


# ---- auto ----


def _chosen(bench: Workbench, settings: CompensationSettings, means: Means, force: bool) -> str:
    """The form of the lowest loss on held-back text that keeps the budgets, from the record or tried now."""
    checkpoint = bench.checkpoint
    record = bench.kept(f"{Variant(checkpoint.model, bench.skip).file}.auto")
    request = AutoRequest(
        **bench.text.origin(checkpoint, record, bench.device),
        variant=bench.skip.name,
        settings=settings,
        budget_params=means.budget_params,
        budget_ms=means.budget_ms,
        timed_on=None if means.budget_ms is None else means.timed_on,
        folds=means.folds,
    )
    known = records.read_same(AutoRecord, record, request)
    if known and not force:
        return known.chosen
    tried = _tried(bench, means.budget_params, means.folds)
    timed = []
    for form, parameters, loss in tried:
        milliseconds = _milliseconds(bench, settings.replaced(form=form), means)
        timed.append((form, parameters, loss, milliseconds))
        if means.budget_ms is None or (milliseconds is not None and milliseconds <= means.budget_ms):
            rest = tuple((*one, None) for one in tried[len(timed) :])
            answer = AutoRecord(**dict(request), chosen=form, tried=(*timed, *rest))
            store.write_json(record, answer.plain())
            return form
    times = ", ".join(f"{form} {milliseconds:.2f} ms" for form, _, _, milliseconds in timed)
    raise UserError(f"no compensation of {bench.skip.name} keeps --budget-ms {means.budget_ms:g}: {times}")


def _milliseconds(bench: Workbench, settings: CompensationSettings, means: Means) -> float | None:
    """What a pass takes with one form, where that is asked; its overlay stays, for a graph reads it now."""
    if means.budget_ms is None or means.milliseconds is None:
        return None
    return means.milliseconds(_made(bench, settings, means, force=False), settings.form)


def _tried(bench: Workbench, budget: int | None, folds: bool) -> list[tuple[str, int, float]]:
    """(form, parameters, loss on held-back text) of those within the budget, the lowest loss first."""
    width = bench.checkpoint.config["hidden_size"]
    ranks = [rank for rank in RANKS if 2 * rank < width]
    names = ["bias", *(f"rank{r}" for r in ranks), "linear", "fold", *(f"fold+rank{r}" for r in ranks)]
    tried = []
    for name in names:
        if Form.parse(name, width).folds and not (folds and bench.can_fold):
            continue
        candidate = bench.plan(name).overlay
        if budget is None or candidate.parameters <= budget:
            tried.append((name, candidate.parameters, bench.planner.loss(candidate)))
    if not tried:
        smallest = len(bench.skip.attention + bench.skip.mlp) * width
        raise UserError(f"--budget-params {budget} holds not even a bias a sublayer: {smallest} numbers")
    return sorted(tried, key=lambda one: (one[2], one[1]))
