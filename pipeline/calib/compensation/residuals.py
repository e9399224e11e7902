"""What the best linear map in a sublayer's place leaves over, of every sublayer of a kind.

Legend: L layers; f what a sublayer adds to the stream, f̂ its linear map, x the stream before it.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.calib.compensation import maps
from pipeline.calib.compensation.forms import Form, fit
from pipeline.calib.compensation.moment_files import MomentFiles, MomentsText
from pipeline.calib.compensation.plan import single_places
from pipeline.models import costs, texts
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import FAST, Reference
from pipeline.types import Provider, SkipSet

LINEAR = "linear"


def residuals(
    folder: Path,
    kind: str,
    text_input: texts.TextInput,
    samples: int,
    length: int,
    device: Provider = "cpu",
) -> dict[str, float]:
    """Name of each candidate ('attn3', 'mlp3', 'block3') → Σ|f − f̂|² / Σ|x|²; a block's: of both, added.

    The moments that are missing are gathered now; `compensate` uses the same.

    Args:
        folder: the checkpoint.
        kind: attn, mlp or block.
        text_input: the text of the moments.
        samples: N.
        length: T.
        device: that the model runs on, where moments are gathered.

    Raises:
        UserError: as `MomentsText.cut` and `MomentFiles.make`.
    """
    checkpoint = open_checkpoint(folder)
    candidates = [SkipSet.of(kind, [layer]) for layer in range(costs.sizes(checkpoint.config).layers)]
    text = MomentsText.cut(checkpoint, text_input, samples, length)
    files = MomentFiles(checkpoint, text, lambda: Reference(folder, load=FAST, device=device), device=device)
    parts = {one.name: single_places(one) for one in candidates}
    files.make(place for places in parts.values() for place in places)
    return {name: sum(_left_over(files, place) for place in places) for name, places in parts.items()}


def _left_over(files: MomentFiles, place: MapPlace) -> float:
    """Σ|f − f̂|² / Σ|x|² of one sublayer, the ridge chosen on held-back tokens."""
    moments = files.read(place)
    width = len(moments.mapped.gram) - 1
    ridge = fit(moments, Form.parse(LINEAR, width)).ridge
    assert ridge is not None
    return maps.unexplained(moments.mapped, moments.energy, ridge) / moments.stream
