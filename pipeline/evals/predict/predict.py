"""Stage: a model's config → the time of 1 token and of a decoding step on a GPU, of base and variants.

Two numbers stand for two programs. An engine can be as fast as the roofline (`evals/roofline`), no faster.
Eager PyTorch launches its kernels one by one from the host, which runs ahead of the GPU where it can: a pass
takes the longer of launches · µs and the roofline.

Legend: S tokens of a prefill, P cached tokens of a decoding step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.evals import roofline
from pipeline.evals.gpus import Gpu
from pipeline.evals.predict import launches
from pipeline.evals.predict.candidates import CostedVariant
from pipeline.evals.roofline import Bound
from pipeline.models import costs
from pipeline.models.config import Config
from pipeline.models.costs import Workload
from pipeline.models.named_configs import NamedConfig
from pipeline.types import UserError

PRECISION = "fp16"
"""Of weights, cache and products: what the datasheets' FLOP/s and the counted launches are of."""


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """What is predicted.

    Attributes:
        lengths: S, and P.
        batch: sequences at once.
        launch_us: µs of a launch on the host in question; None: the GPU's.
    """

    lengths: tuple[int, ...] = (50, 100)
    batch: int = 1
    launch_us: float | None = None

    def __post_init__(self) -> None:
        if not self.lengths or min(self.batch, *self.lengths) < 1:
            raise UserError("--lengths and --batch must be at least 1")
        if self.launch_us is not None and not 0 < self.launch_us < 1e6:
            raise UserError(f"--launch-us {self.launch_us:g} is not a time between 0 and a second")


@dataclass(frozen=True, slots=True)
class PassTime:
    """What one pass is predicted to take.

    Attributes:
        engine_ms: the roofline, ms.
        engine_bound: what binds there.
        engine_saved: % of the base's that is saved.
        launches: kernels of eager PyTorch.
        eager_ms: ms in eager PyTorch.
        eager_bound: what binds there: launches too.
        eager_saved: % of the base's that is saved.
    """

    engine_ms: float
    engine_bound: Bound
    engine_saved: float
    launches: int
    eager_ms: float
    eager_bound: Bound | Literal["launches"]
    eager_saved: float


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """One variant at one length.

    Attributes:
        variant: its name.
        length: S of the prefill, P of the decoding step.
        needs_gb: weights, and the cache with the decoded token, 10⁹ bytes.
        fits: into the GPU's memory; what else a runtime needs is not counted.
        prefill, decode: the passes; None where it does not fit.
    """

    variant: str
    length: int
    needs_gb: float
    fits: bool
    prefill: PassTime | None
    decode: PassTime | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's variants on one GPU; the first row of each length is the base.

    Attributes:
        model: its name.
        gpu: that it is predicted for.
        batch: sequences at once.
        launch_us, launch_source: what a launch was taken to cost, and where that is from.
        launches_of: the architecture whose counted launches were taken.
        is_counted: it is the model's own.
        rows: length by length.
    """

    model: str
    gpu: Gpu
    batch: int
    launch_us: float
    launch_source: str
    launches_of: str
    is_counted: bool
    rows: tuple[PredictedRow, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "gpu": self.gpu.plain(),
            "precision": PRECISION,
            "batch": self.batch,
            "launch_us": self.launch_us,
            "launch_source": self.launch_source,
            "launches_of": self.launches_of,
            "is_counted": self.is_counted,
            "versions": launches.table().versions,
            "rows": [asdict(row) for row in self.rows],
        }


def predict(
    model: NamedConfig,
    variants: Sequence[CostedVariant],
    gpu: Gpu,
    settings: PredictSettings = PredictSettings(),
) -> Prediction:
    """Predicts the time of variants on a GPU.

    Args:
        model: theirs.
        variants: the base first, over which time is saved.
        gpu: that they run on.
        settings: what is predicted.

    Raises:
        UserError: the config does not say the model's sizes.
    """
    own = settings.launch_us is None
    one = _Predictor(model.config, gpu, settings.launch_us or gpu.launch.us, settings.batch)
    rows = [one.row(variant, variants[0], length) for length in settings.lengths for variant in variants]
    model_type = model.config.get("model_type")
    is_counted = launches.is_counted(model_type)
    return Prediction(
        model=model.name,
        gpu=gpu,
        batch=settings.batch,
        launch_us=one.launch_us,
        launch_source=gpu.launch.source if own else "--launch-us",
        launches_of=str(model_type) if is_counted else launches.LLAMA,
        is_counted=is_counted,
        rows=tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class _Predictor:
    """One model on one GPU."""

    config: Config
    gpu: Gpu
    launch_us: float
    batch: int

    def row(self, variant: CostedVariant, base: CostedVariant, length: int) -> PredictedRow:
        cache = self.batch * (length + 1) * costs.cache_bytes(self.config, variant.skip, PRECISION)
        needs = costs.weight_bytes(self.config, variant.skip, PRECISION, variant.maps) + cache
        fits = needs <= self.gpu.memory
        prefill, decode = (
            self.time(variant, base, Workload(length, is_decode, self.batch)) if fits else None
            for is_decode in (False, True)
        )
        return PredictedRow(variant.name, length, needs / 1e9, fits, prefill, decode)

    def time(self, variant: CostedVariant, base: CostedVariant, work: Workload) -> PassTime:
        (engine, bound, count), (whole, _, most) = self.parts(variant, work), self.parts(base, work)
        launched = count * self.launch_us / 1e6
        eager = max(launched, engine)
        return PassTime(
            engine_ms=engine * 1e3,
            engine_bound=bound,
            engine_saved=saved_percent(engine, whole),
            launches=count,
            eager_ms=eager * 1e3,
            eager_bound="launches" if launched > engine else bound,
            eager_saved=saved_percent(eager, max(most * self.launch_us / 1e6, whole)),
        )

    def parts(self, variant: CostedVariant, work: Workload) -> tuple[float, Bound, int]:
        """(seconds of the roofline, what binds there, kernels of eager PyTorch)."""
        traffic = roofline.traffic(self.config, variant.skip, PRECISION, work, variant.maps)
        count = launches.count(self.config, variant.skip, work.decode, variant.stand_ins)
        return traffic.seconds(self.gpu), traffic.bound(self.gpu), count


def saved_percent(part: float, whole: float) -> float:
    """% of a base's time, or of its launches, that a variant saves."""
    return 100 * (1 - part / whole)
