"""The best linear map for each sublayer of a kind, which candidates for removal are judged with."""

from __future__ import annotations

from pipeline.calib.compensation.forms import Form, fit
from pipeline.calib.compensation.moment_files import MomentFiles, MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.plan import single_places
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.compensation import MapParts, MapPlace
from pipeline.models.reference import Reference
from pipeline.types import SkipSet


def linear_maps(
    checkpoint: Checkpoint, reference: Reference, kind: str, text: MomentsText
) -> dict[MapPlace, MapParts]:
    """A map for each place of a kind, 4·C² bytes each; moments that are missing are gathered now.

    Args:
        checkpoint: the whole model.
        reference: the same, in fp32.
        kind: attn, mlp or block (a map for each of its sublayers).
        text: what they are fitted on.

    Raises:
        UserError: as `MomentFiles.make`.
    """
    every = SkipSet.of(kind, range(len(reference.layers)))
    places = single_places(every)
    files = MomentFiles(checkpoint, text, lambda: reference, device=reference.device)
    files.make(places)
    form = Form.parse("linear", reference.model.config.hidden_size)
    return Overlay(every, {place: fit(files.read(place), form).map for place in places}).parts()
