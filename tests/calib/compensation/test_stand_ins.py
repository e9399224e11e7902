"""Maps of all candidates are those of `compensate`."""

from __future__ import annotations

import torch

from pipeline.calib.compensation import stand_ins
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.calib.compensation.workbench import Workbench
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import SkipSet


def test_each_map_is_the_linear_form_of_its_sublayer(
    checkpoint: Checkpoint, reference: Reference, text: MomentsText
) -> None:
    maps = stand_ins.linear_maps(checkpoint, reference, "block", text)
    assert set(maps) == {MapPlace(layer, layer, kind) for layer in range(4) for kind in ("attn", "mlp")}
    planned = Workbench(checkpoint, SkipSet((), (1, 2)), text).plan("linear").overlay.parts()
    for place, (factors, bias) in planned.items():
        assert torch.equal(maps[place][0][0], factors[0]) and torch.equal(maps[place][1], bias)
