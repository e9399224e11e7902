"""What is kept of compensations: the moments that they follow from, and what each brought back."""

from __future__ import annotations

from typing import Literal

from pipeline.store.records.base import Count, Digest, Record, Seconds
from pipeline.store.records.calibration import OfModelOnText


class MomentsRequest(OfModelOnText):
    """What moments are to be gathered.

    Attributes:
        place: 'attn5', 'mlp7', or 'block12-17' for a run of whole layers.
        samples, length: N sequences of T tokens.
        held_count: so many of them, the last, are not in the sums.
        outlier: a token whose f is longer than so many times the median counts as one of that length.
    """

    what: Literal["moments"] = "moments"
    place: str
    samples: Count
    length: Count
    held_count: Count
    outlier: float


class MomentsRecord(MomentsRequest):
    """calib/<model>/moments/<place>[.cuda].json, beside the sums in a file of that name.

    Attributes:
        tokens: in the sums.
        energy: Σ|f|² of them, f what is added to the stream in that place.
        stream: Σ|x|² of them, x the stream before that place.
        sha256: of the sums' file.
    """

    tokens: Count
    energy: float
    stream: float
    sha256: Digest


class HessiansRequest(OfModelOnText):
    """What second moments of linear layers' inputs are to be gathered.

    Attributes:
        place: 'layer5', or 'head'.
        samples, length: N sequences of T tokens, all of which are in the sums.
        sink: where attention reads them, the first token of a sequence counts sink · T more.
    """

    what: Literal["hessians"] = "hessians"
    place: str
    samples: Count
    length: Count
    sink: float


class HessiansRecord(HessiansRequest):
    """calib/<model>/hessians/<place>[.cuda].json, beside the sums in a file of that name.

    Attributes:
        readers: name of each weight → the sum of its inputs, called by the first weight that reads them.
        sha256: of the sums' file.
    """

    readers: dict[str, str]
    sha256: Digest


class BareLossesRequest(OfModelOnText):
    """What losses without a compensation are of.

    Attributes:
        samples, length: N sequences of T tokens, behind which those lie that losses are measured on.
    """

    what: Literal["bare-losses"] = "bare-losses"
    samples: Count
    length: Count


class BareLossesRecord(BareLossesRequest):
    """calib/<model>/compensation/losses[.cuda].json: what all forms of a variant are compared with.

    Attributes:
        losses: name of the skip set → nats a token with nothing in the place of what it skips.
    """

    losses: dict[str, float] = {}


class CompensationSettings(Record):
    """What is to stand in for skipped sublayers, and how much text it is fitted on.

    Attributes:
        form: 'bias', 'linear', 'matrix', 'rank16', 'fold', 'fold+rank16'; or 'auto', which takes one of them.
        samples, length: N sequences of T tokens.
        refit: fit later maps and folds anew on what the variant itself computes, where that lowers the loss.
    """

    form: str = "linear"
    samples: Count = 48
    length: Count = 256
    refit: bool = False


class CompensationRequest(OfModelOnText):
    """What compensation is to be made.

    Attributes:
        variant: name of the skip set.
    """

    what: Literal["compensation"] = "compensation"
    variant: str
    settings: CompensationSettings


class CompensationLosses(Record):
    """Nats a token on held-out text: of the whole model, of the bare variant, of the compensated one."""

    base: float
    none: float
    compensated: float


class MapRecord(Record):
    """What stands in one place.

    Attributes:
        place: 'attn5', or 'block12-17' for a run of whole layers.
        form: its own; that of a sublayer which cannot be folded is 'bias'.
        ridge: of the map, relative to the median mean square of an entry of what it reads.
        fold_ridge: of what is folded into the projection before.
        folded_into: that projection's weight.
        r2: share of what was skipped there that is explained on held-back tokens; None: it never varies.
        refitted: fitted on what the variant itself computes.
        note: what else a person should know of it.
    """

    place: str
    form: str
    ridge: float | None = None
    fold_ridge: float | None = None
    folded_into: str | None = None
    r2: float | None = None
    refitted: bool = False
    note: str = ""


class CompensationRecord(CompensationRequest):
    """graphs/<model>/<variant>~<form>.json, beside the overlay.

    Attributes:
        losses: on sequences that nothing was fitted on and nothing was chosen by.
        regained_share: (none − compensated) / (none − base); None where there was no damage.
        parameters: numbers that the maps hold; what is folded adds none.
        maps: what stands where, in the order of the stream.
        runs: of each run of whole layers, the losses on held-back sequences with a map for each of its
            sublayers, and with one for all of it: (run, maps, one map). The lower one was kept.
        refit_losses: where a refit was asked for: loss on held-back sequences with the maps as they were, and
            with later ones fitted anew. The lower one was kept.
        sha256: of the overlay.
    """

    losses: CompensationLosses
    regained_share: float | None
    parameters: Count
    maps: tuple[MapRecord, ...]
    runs: tuple[tuple[str, float, float], ...] = ()
    refit_losses: tuple[float, float] | None = None
    seconds: Seconds = 0.0
    tools: dict[str, str] = {}
    sha256: Digest


class AutoRequest(OfModelOnText):
    """What forms `auto` is to choose from.

    Attributes:
        variant, settings: as of a compensation.
        budget_params: numbers that the maps may hold.
        budget_ms: milliseconds that a pass may take.
        timed_on: the graph and the machine that these are of.
        folds: whether folding is among them.
    """

    what: Literal["compensation-choice"] = "compensation-choice"
    variant: str
    settings: CompensationSettings
    budget_params: Count | None = None
    budget_ms: float | None = None
    timed_on: str | None = None
    folds: bool = True


class AutoRecord(AutoRequest):
    """calib/<model>/compensation/<variant>.auto[.cuda].json: the form that `auto` chose.

    Attributes:
        chosen: the form.
        tried: (form, parameters, loss on held-back sequences, milliseconds where they were measured), the
            lowest loss first.
    """

    chosen: str
    tried: tuple[tuple[str, Count, float, float | None], ...] = ()
