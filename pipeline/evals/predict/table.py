"""A prediction for a person."""

from __future__ import annotations

from rich.table import Table

from pipeline.evals.predict.predict import PRECISION, PassTime, Prediction

MARKS = {"bytes": "b", "FLOPs": "f", "launches": "l"}
COLUMNS = ("engine\nms", "saved\n%", "eager\nms", "saved\n%")
"""Of a pass."""


def table(prediction: Prediction) -> Table:
    """Base and variants, length by length; prefill left, decoding step right."""
    gpu = prediction.gpu
    title = (
        f"{prediction.model} on {gpu.name}: {gpu.bandwidth_gb_s:g} GB/s, {gpu.fp16_tflops:g} TFLOP/s, "
        f"{prediction.launch_us:g} µs a launch; {PRECISION}, batch {prediction.batch}"
    )
    rows = Table(title=title, caption=_caption(prediction))
    rows.add_column("variant", overflow="fold")
    rows.add_column("tokens", justify="right")
    for name in ("1 token", "decode"):
        for heading in COLUMNS:
            rows.add_column(f"{name}\n{heading}", justify="right", no_wrap=True)
    last = None
    for row in prediction.rows:
        if last not in (None, row.length):
            rows.add_section()
        last = row.length
        cells = [*_cells(row.prefill), *_cells(row.decode)]
        rows.add_row(row.variant + ("" if row.fits else " ✗"), str(row.length), *cells)
    return rows


def _cells(time: PassTime | None) -> tuple[str, ...]:
    if time is None:
        return ("",) * len(COLUMNS)
    return (
        f"{time.engine_ms:.2f} {MARKS[time.engine_bound]}",
        f"{time.engine_saved:.1f}",
        f"{time.eager_ms:.2f} {MARKS[time.eager_bound]}",
        f"{time.eager_saved:.1f}",
    )


def _caption(prediction: Prediction) -> str:
    """What a reader must know before believing the table."""
    base = prediction.rows[0].variant
    notes = [
        "engine: its roofline, which no kernel beats; eager: PyTorch, which launches kernel by kernel",
        f"b: bytes bind, f: FLOPs, l: launches; saved: over {base}; a prediction, not a measurement",
    ]
    too_big = [row for row in prediction.rows if not row.fits]
    if too_big:
        least, memory = min(row.needs_gb for row in too_big), prediction.gpu.memory / 1e9
        notes.append(
            f"✗ does not fit: its weights and cache need {least:.1f} GB or more, and the GPU has {memory:.1f}"
        )
    if not prediction.is_counted:
        notes.append(f"launches are {prediction.launches_of}'s: those of this architecture were not counted")
    return "\n".join(notes)
