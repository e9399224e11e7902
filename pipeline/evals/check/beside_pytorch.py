"""An artefact and PyTorch on the same feeds, and how near their outputs are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.check import shifts
from pipeline.evals.check.agreement import LIMITS, Agreements, CompareOutputs
from pipeline.evals.check.scripted import ArtefactRunner, Feed, TorchRunner
from pipeline.models.quantisation import modules
from pipeline.store.records import QuantisationShifts
from pipeline.types import Devices


@dataclass(frozen=True, slots=True)
class Compared:
    """What was played, and how near it is.

    Attributes:
        outputs: of both sides.
        agreements: of the artefact with fp32 PyTorch.
        noise: of fp16 PyTorch with fp32 PyTorch, beside fp16 artefacts.
        shifts: of quantised weights, by how much they move the logits.
    """

    outputs: RunResults
    agreements: Agreements
    noise: Agreements
    shifts: QuantisationShifts | None


def compare(path: Path, folder: Path, feeds: list[Feed], devices: Devices) -> Compared:
    """Plays feeds on an artefact and on PyTorch, which holds the weights that the artefact holds.

    Products with quantised weights are computed in the activations' precision meanwhile, so that the limits
    are those of that precision. Beside it such a graph is played as it is run elsewhere, and so is PyTorch
    with the checkpoint's own weights: what both give is told, and limits nothing.

    Args:
        path: graph or engine.
        folder: of the checkpoint.
        feeds: what to play.
        devices: that the graph and PyTorch run on.
    """
    variant, overlays = store.variant(path, quick=True), modules.overlays_of(path)
    limits, half = LIMITS[variant.precision], variant.precision == "fp16"
    torch = partial(TorchRunner, folder, variant.skip, device=devices.torch)
    opened = partial(opening.open_runner, path, provider=devices.graphs)
    runners = [ArtefactRunner(partial(opened, exact=True), path.stem), torch("fp32", overlays)]
    runners += [torch("fp16", overlays)] if half else []
    full = len(runners)
    if variant.quantisation:
        runners.append(torch("fp32", overlays[1:], name="torch-fp32, weights not quantised"))
        if path.suffix == ".onnx" and devices.graphs == "cpu":
            runners.append(ArtefactRunner(opened, f"{path.stem}, activations in 8 bits"))
    names = [feed.name for feed in feeds]
    noise: Agreements = {}
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        outputs = Comparator.run(runners, data_loader=[feed.arrays for feed in feeds])
        if half:
            noise = _agreements(outputs, (2, 1), CompareOutputs(limits), names)
        errors = [{name: one.max_rel for name, one in feed.items()} for feed in noise.values()]
        agreements = _agreements(outputs, (0, 1), CompareOutputs(limits, errors), names)
    moved = None
    if variant.quantisation:
        kernel = shifts.between(outputs, 0, full + 1) if len(runners) > full + 1 else None
        moved = QuantisationShifts(weights=shifts.between(outputs, full, 1), kernel=kernel)
    return Compared(outputs, agreements, noise, moved)


def _agreements(
    outputs: RunResults, pair: tuple[int, int], function: CompareOutputs, names: list[str]
) -> Agreements:
    """Feed → output → agreement of two of the runners."""
    # Polygraphy computes statistics of outputs that may hold NaN; the verdict does not use them.
    with np.errstate(invalid="ignore"):
        accuracy = Comparator.compare_accuracy(outputs, comparisons=[pair], compare_func=function)
    # Polygraphy 0.53 gives one AccuracyResult a function, earlier ones the only one bare.
    result = accuracy[0] if len(accuracy) and not isinstance(next(iter(accuracy)), tuple) else accuracy
    (iterations,) = result.values()
    return dict(zip(names, (dict(agreements) for agreements in iterations), strict=True))
