"""Plans of engines that run the toy model on the GPU that is not there (`fake_tensorrt.py`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pipeline.runtime.runner import Limits
from pipeline.runtime.tensorrt import Plan
from pipeline.runtime.tensorrt_library import Profile
from tests import fake_gpu, fake_tensorrt

G, D = fake_gpu.HEADS, fake_gpu.DIM
WIDE: Profile = {
    name: ((1, 1), (1, 50), (999, 999)) for name in fake_gpu.INPUTS if not name.startswith("past_key_values.")
} | dict.fromkeys(fake_gpu.PASTS, ((1, G, 0, D), (1, G, 0, D), (999, G, 999, D)))
DECODING: Profile = WIDE | dict.fromkeys(("input_ids", "position_ids"), ((1, 1), (1, 1), (9, 1)))
LIMITS = Limits(batch=9, new=999, past=999, wanted=9)
PLAN = Plan("tensorrt", fake_tensorrt.__version__, ("sm90",), (WIDE, DECODING), LIMITS)
N = fake_gpu.PLACES
STATIC: Profile = WIDE | {
    "attention_mask": ((1, N), (1, N), (9, N)),
    "write_indices": ((1,), (1,), (9,)),
    **dict.fromkeys(fake_gpu.PASTS, ((1, G, N, D), (1, G, N, D), (9, G, N, D))),
}
STATIC_PLAN = replace(PLAN, profiles=(STATIC,), limits=Limits(batch=9, new=9, past=N - 1, wanted=9))


def write(path: Path, plan: Plan = PLAN, weight: float | None = 1.0) -> Path:
    """An engine's file.

    Args:
        path: of it.
        plan: `PLAN` or `STATIC_PLAN`.
        weight: of the model; None: stripped.
    """
    is_static = "write_indices" in plan.profiles[0]
    path.write_text(json.dumps({"weight": weight, "profiles": len(plan.profiles), "is_static": is_static}))
    return path
