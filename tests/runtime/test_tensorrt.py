from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.runtime import tensorrt
from pipeline.runtime.tensorrt_library import Profile, Range
from pipeline.types import UserError
from tests import needs, tiny


def feeds(batch: int, new: int, past: int, wanted: int = 1) -> dict[str, Any]:
    shapes = {
        "input_ids": (batch, new),
        "attention_mask": (batch, new + past),
        "position_ids": (batch, new),
        "logits_positions": (batch, wanted),
        "past_key_values.0.key": (batch, 2, past, 16),
    }
    return {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}


def profile(length: Range, past: Range, wanted: Range) -> Profile:
    at = list(zip((1, 1, 8), length, past, wanted, strict=True))
    return {
        "input_ids": tuple((b, s) for b, s, _, _ in at),
        "attention_mask": tuple((b, s + p) for b, s, p, _ in at),
        "position_ids": tuple((b, s) for b, s, _, _ in at),
        "logits_positions": tuple((b, k) for b, _, _, k in at),
        "past_key_values.0.key": tuple((b, 2, p, 16) for b, _, p, _ in at),
    }


def test_the_profile_is_picked_by_the_feeds() -> None:
    profiles = [
        profile((1, 100, 200), (0, 0, 200), (1, 1, 128)),
        profile((1, 1, 1), (0, 100, 200), (1, 1, 1)),
    ]
    assert tensorrt.pick_profile(profiles, feeds(1, 50, 0)) == 0
    assert tensorrt.pick_profile(profiles, feeds(8, 1, 90)) == 1
    assert tensorrt.pick_profile(profiles, feeds(1, 7, 90)) == 0  # a further chunk of a prompt
    no_past = {name: array for name, array in feeds(1, 1, 90).items() if "past" not in name}
    assert tensorrt.pick_profile([{n: p[n] for n in no_past} for p in profiles], no_past) == 1
    for wrong in (feeds(9, 50, 0), feeds(1, 201, 0), feeds(1, 1, 201), feeds(1, 200, 0, wanted=129)):
        with pytest.raises(UserError, match="was not built for") as caught:
            tensorrt.pick_profile(profiles, wrong)
        assert "\n" not in str(caught.value) and "past_key_values" not in str(caught.value)


@needs.rtx
def test_polygraphy_speaks_to_the_backend_of_the_plan() -> None:
    """Also if it was imported before, as in `pipeline check`, and if plans of both backends take turns."""
    script = (
        "import json, sys\n"
        "from polygraphy.comparator import Comparator\n"
        "from polygraphy.datatype import DataType\n"
        "from pipeline.runtime import tensorrt as r, tensorrt_library\n"
        "trt = tensorrt_library.library('tensorrt-rtx')\n"
        "sys.modules['tensorrt'] = sys\n"  # stands for the other library
        "names = []\n"
        "for backend in ('tensorrt-rtx', 'tensorrt', 'tensorrt-rtx'):\n"
        "    runner = sys.modules[r._polygraphy(backend).__module__]\n"
        "    names.append([hasattr(runner.trt, 'ICudaEngine')])\n"
        "    if backend == 'tensorrt-rtx':\n"
        "        names[-1].append(DataType.from_dtype(trt.float16, 'tensorrt') is DataType.FLOAT16)\n"
        "print(json.dumps(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=tiny.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[True, True], [False], [True, True]]


class FakeRefit:
    """TensorRT's refit API as far as it is used, with each way to fail."""

    __name__ = "fake"

    class ILogger:
        Severity = SimpleNamespace(VERBOSE=0)

    def __init__(self, fits: bool = True, missing: tuple[str, ...] = (), done: bool = True) -> None:
        self.fits, self.missing, self.done, self.refitted = fits, missing, done, False
        self.num_errors = 1

    def Refitter(self, engine: Any, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        return self

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        return self

    def refit_from_file(self, path: str) -> bool:
        return self.fits

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "types\ndiffer")

    def get_missing_weights(self) -> list[str]:
        return list(self.missing)

    def refit_cuda_engine(self) -> bool:
        self.refitted = self.done
        return self.done


def test_refit_fails_unless_every_weight_is_back() -> None:
    good = FakeRefit()
    tensorrt.refit(good, None, Path("g.onnx"))
    assert good.refitted
    for fake, why in (
        (FakeRefit(fits=False), "do not fit the engine: types differ"),
        (FakeRefit(missing=("a", "b")), "lacks 2 of the weights that the engine needs, a among them"),
        (FakeRefit(done=False), "could not be refitted"),
    ):
        with pytest.raises(UserError, match=why):
            tensorrt.refit(fake, None, Path("g.onnx"))
        assert not fake.refitted
