"""What the stages of a proof found, in rows: checks, times beside the paper's and predicted ones, texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evals.bench.device_notes import load_text
from pipeline.report import papers
from pipeline.runtime.ort_placement import HEAVY
from pipeline.store.records import GpuLoad
from pipeline.types import count_of
from runs.gpu.proof import CACHED, Proof
from runs.gpu.shapes import FRACTIONS, KINDS, ModelShape

KEPT = {0.25: "75", 0.33: "66"}
"""Fraction left out → % kept, as the paper's tables label it."""


@dataclass(frozen=True, slots=True)
class CheckRow:
    """An artefact beside PyTorch in fp32.

    Attributes:
        max_rel, top1: worst of all logits; noise: max_rel of PyTorch in fp16, where that was measured.
        device: of the artefact.
        failure: the first of the check's; '' where it passed.
    """

    variant: str
    runtime: str
    passed: bool
    max_rel: float | None
    noise: float | None
    top1: float | None
    device: str
    failure: str


@dataclass(frozen=True, slots=True)
class TimeRow:
    """A variant's time at one length; % are of the base's time that is saved.

    Attributes:
        is_decode: one further token on a cache of `length`, not a prefill of it.
        ms: median; low, high: 95 % interval of `saved`.
        ceiling: % that what binds allows to save.
        torch_ms, torch_saved: of eager PyTorch, in the same run.
        paper_saved: of Tyukin et al., where they have it.
        engine_ms, engine_saved, eager_ms, eager_saved: that `pipeline predict` says.
        is_checked: every artefact of the run had passed its check.
        is_disturbed: other work, or heat, disturbed the samples.
        device_mb: MiB of the GPU; attention: the kernels that it ran on, where that is told.
        on_host: operators that compute, and that ONNX Runtime ran on the CPU, with their number.
    """

    variant: str
    runtime: str
    length: int
    is_decode: bool
    ms: float
    saved: float
    low: float
    high: float
    ceiling: float | None
    torch_ms: float | None
    torch_saved: float | None
    paper_saved: float | None
    engine_ms: float | None
    engine_saved: float | None
    eager_ms: float | None
    eager_saved: float | None
    is_checked: bool
    is_disturbed: bool = False
    device_mb: float | None = None
    attention: str | None = None
    on_host: str = ""


@dataclass(frozen=True, slots=True)
class LoadRow:
    """The GPU while one length was timed.

    Attributes:
        run: the stage.
        text: clocks, power and heat; problems: what disturbed it, '' where nothing did.
    """

    run: str
    length: int
    text: str
    problems: str


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text that was generated.

    Attributes:
        tokens: that were decoded.
        first_ms: until the first came; ms: of each one after it.
        engine_ms: that `pipeline predict` says of a decoding step.
    """

    variant: str
    runtime: str
    tokens: int
    first_ms: float | None
    ms: float | None
    engine_ms: float | None


@dataclass(frozen=True, slots=True)
class DemoRow:
    """The demo model's text. `is_same`: as on the CPU; None where it is the CPU's."""

    provider: str
    text: str
    is_same: bool | None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was found."""

    checks: tuple[CheckRow, ...]
    times: tuple[TimeRow, ...]
    loads: tuple[LoadRow, ...]
    texts: tuple[TextRow, ...]
    demo: tuple[DemoRow, ...]


def findings(proof: Proof) -> Findings:
    """Reads what the stages printed."""
    return Findings(
        tuple(_checks(proof)),
        tuple(_times(proof)),
        tuple(_loads(proof)),
        tuple(_texts(proof)),
        tuple(_demo(proof)),
    )


def paper_saved(shape: ModelShape, variant: str, length: int) -> float | None:
    """% that Tyukin et al. saved by leaving the same out of a model of this shape; None: they did not."""
    for kind in KINDS:
        for fraction in FRACTIONS:
            count = count_of(fraction, shape.layers)
            if variant != f"{kind}{shape.layers - count}-{shape.layers - 1}":
                continue
            for row in papers.latencies():
                same = (row["model"], row["kept"], row["length"], row["select"])
                if same == (shape.paper, KEPT[fraction], str(length), "last"):
                    return float(row[f"{kind}_saved"])
    return None


def _checks(proof: Proof) -> Iterator[CheckRow]:
    for one in proof.artefacts:
        for record in proof.conductor.output(one.check) or ():
            worst = record.get("worst") or {}
            yield CheckRow(
                one.variant,
                one.runtime,
                bool(record["passed"]),
                worst.get("max_rel"),
                _noise(record.get("noise") or {}),
                worst.get("top1"),
                record["device"],
                " ".join(str((record.get("failures") or [""])[0]).split()),
            )


def _noise(feeds: dict[str, dict[str, Any]]) -> float | None:
    """The worst max_rel of PyTorch's logits in fp16."""
    outputs = [one for feed in feeds.values() for name, one in feed.items() if name.endswith("logits")]
    errors = [one["max_rel"] for one in outputs if one.get("max_rel") is not None]
    return max(errors, default=None)


def _times(proof: Proof) -> Iterator[TimeRow]:
    predicted = _predicted(proof)
    by_path = {one.path: one for one in proof.artefacts if one.path}
    seen = set[tuple[str, int, bool]]()
    for name in proof.benches:
        report = proof.conductor.output(name)
        for row in report["rows"] if report else ():
            is_decode = bool(report["conditions"]["decode"])
            place = (row["artefact"], row["length"], is_decode)
            if row["kind"] != "artefact" or place in seen:  # the base stands in each of several runs
                continue
            seen.add(place)
            own = by_path[row["artefact"]]
            engine, eager = predicted.get((own.variant, row["length"], is_decode), (None, None))
            torch_ms, torch_saved = _torch(report["rows"], row)
            yield TimeRow(
                variant=own.variant,
                runtime=own.runtime,
                length=row["length"],
                is_decode=is_decode,
                ms=row["p50"],
                saved=row["improvement"],
                low=row["interval"][0],
                high=row["interval"][1],
                ceiling=row.get("byte_ceiling") or row.get("ceiling"),
                torch_ms=torch_ms,
                torch_saved=torch_saved,
                paper_saved=None if is_decode else paper_saved(proof.shape, own.variant, row["length"]),
                engine_ms=engine and engine[0],
                engine_saved=engine and engine[1],
                eager_ms=eager and eager[0],
                eager_saved=eager and eager[1],
                is_checked=bool(report["conditions"]["checked"]),
                is_disturbed=not row.get("enough_clean", True),
                device_mb=row.get("device_mb"),
                attention=row.get("attention"),
                on_host=_heavy(row.get("on_host") or {}),
            )


def _heavy(on_host: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in on_host.items() if name in HEAVY)


def _loads(proof: Proof) -> Iterator[LoadRow]:
    for name in proof.benches:
        report = proof.conductor.output(name)
        for length, plain in (report["conditions"].get("gpu") or {}).items() if report else ():
            load = GpuLoad.model_validate_json(json.dumps(plain))
            yield LoadRow(name, int(length), load_text(load), "; ".join(load.problems))


def _torch(rows: Sequence[dict[str, Any]], own: dict[str, Any]) -> tuple[float | None, float | None]:
    """(ms of PyTorch on the variant of a row, % of PyTorch's base that it saves), of the same run."""
    models = [row for row in rows if row["kind"] == "torch" and row["length"] == own["length"]]
    mine = next((row["p50"] for row in models if row["artefact"] == own["artefact"]), None)
    base = next((row["p50"] for row in models if row["name"].startswith("base")), None)
    return mine, None if mine is None or base is None else 100 * (1 - mine / base)


Prediction = tuple[float, float]
"""ms, and % of the base's that is saved."""


def _predicted(proof: Proof) -> dict[tuple[str, int, bool], tuple[Prediction, Prediction]]:
    """(variant, length, is_decode) → (as an engine, in eager PyTorch)."""
    output = proof.conductor.output("predict")
    found = {}
    for row in output["predictions"][0]["rows"] if output else ():
        for is_decode, one in ((False, row["prefill"]), (True, row["decode"])):
            if one is not None:
                found[row["variant"], row["length"], is_decode] = (
                    (one["engine_ms"], one["engine_saved"]),
                    (one["eager_ms"], one["eager_saved"]),
                )
    return found


def _texts(proof: Proof) -> Iterator[TextRow]:
    predicted = _predicted(proof)
    for name, one in proof.texts.items():
        record = proof.conductor.output(name)
        if record is None:
            continue
        engine, _ = predicted.get((one.variant, int(CACHED), True), (None, None))
        yield TextRow(
            one.variant,
            one.runtime,
            len(record["tokens"]),
            record["first_ms"],
            record["ms_a_token"],
            engine and engine[0],
        )


def _demo(proof: Proof) -> Iterator[DemoRow]:
    """Texts of the demo model; they are greedy, so that those of two devices are the same."""
    records = {name: proof.conductor.output(f"demo {name}") for name in ("cuda", "cpu")}
    for provider, record in records.items():
        if record is not None:
            other = records["cpu"] if provider == "cuda" else None
            same = None if other is None else record["tokens"] == other["tokens"]
            yield DemoRow(provider, record["text"], same)
