"""Reads what the stages of a proof printed, into rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.evals.bench.device_notes import load_text
from pipeline.report import papers
from pipeline.runtime.ort_placement import HEAVY
from pipeline.store.records import GpuLoad
from pipeline.types import count_of
from runs.gpu.proof import CACHED, Proof
from runs.gpu.rows import CheckRow, DemoRow, EngineRow, Findings, LoadRow, TextRow, TimeRow
from runs.gpu.shapes import FRACTIONS, KINDS, ModelShape

KEPT = {0.25: "75", 0.33: "66"}
"""Fraction left out → % kept, as the paper's tables label it."""


def findings(proof: Proof) -> Findings:
    """Reads what the stages printed."""
    return Findings(
        tuple(_engines(proof)),
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


def _engines(proof: Proof) -> Iterator[EngineRow]:
    for one in proof.artefacts:
        if not one.path.endswith(".plan"):
            continue
        build, plan = proof.conductor.output(one.stage)[0]["build"], proof.conductor.folder / one.path
        yield EngineRow(
            one.variant,
            one.runtime,
            plan.stat().st_size / 1e6 if plan.is_file() else None,
            build["parse_seconds"] + build["build_seconds"],
            build["process_peak_mb"],
            build["num_layers"],
        )


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
            own, plain = by_path[row["artefact"]], row.get("over_plain")
            foreseen = (None, None) if plain else predicted.get((own.variant, row["length"], is_decode))
            engine, eager = foreseen or (None, None)
            beside, is_paper = plain or row, not plain and not is_decode
            torch_ms, torch_saved = _torch(report["rows"], row)
            yield TimeRow(
                variant=own.variant,
                runtime=own.runtime,
                is_base=own.variant == "base" and not plain,
                length=row["length"],
                is_decode=is_decode,
                ms=row["p50"],
                saved=beside["improvement"],
                low=beside["interval"][0],
                high=beside["interval"][1],
                ceiling=beside.get("byte_ceiling") or beside.get("ceiling"),
                torch_ms=torch_ms,
                torch_saved=torch_saved,
                paper_saved=paper_saved(proof.shape, own.variant, row["length"]) if is_paper else None,
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
