"""What a person must know of the GPU that a measurement ran on, in lines below its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.runtime.ort_placement import HEAVY
from pipeline.store.records import Conditions, GpuLoad, Latency


def notes(rows: Sequence[Latency], how: Conditions) -> list[str]:
    """The lines; none of what ran on the CPU."""
    loads = [f"GPU at {length} tokens: {load_text(load)}" for length, load in how.gpu.items()]
    if how.warm_up and not loads:
        loads = ["the GPU's clocks and who else uses it were not read: there is no nvidia-smi that answers"]
    timing = [how.timing] if how.warm_up else []
    return [*timing, *_attention(rows), *_on_host(rows), *loads]


def load_text(load: GpuLoad) -> str:
    """'1980 MHz (1965 to 1980) of 1980, 312 W of 700, 54 °C; 40% of the time held by its power limit'."""
    parts = []
    if load.sm_mhz:
        parts.append(_spread(load.sm_mhz, "MHz", load.before.sm_most_mhz))
    if load.watts:
        parts.append(_spread(load.watts, "W", load.before.watts_limit))
    if load.celsius:
        parts.append(f"{load.celsius[2]:.0f} °C")
    held = [f"{share:.0%} of the time held by {reason}" for reason, share in load.reasons.items()]
    return "; ".join([", ".join(parts) or "its clocks are not told", *held])


def _spread(values: tuple[float, float, float], unit: str, most: float | None) -> str:
    low, middle, high = values
    text = f"{middle:.0f} {unit}" + (f" ({low:.0f} to {high:.0f})" if high - low >= 1 else "")
    return text + (f" of {most:.0f}" if most else "")


def _attention(rows: Sequence[Latency]) -> Iterator[str]:
    """Which kernels attention ran on, by length, where the runtime tells; PyTorch's beside others' alone."""
    told = [row for row in rows if row.attention and row.kind != "torch"]
    if not told:
        return
    for length in dict.fromkeys(row.length for row in told):
        by_kernel = dict[str, list[str]]()
        for row in rows:
            if row.length == length and row.attention:
                by_kernel.setdefault(row.attention, []).append(row.name)
        words = (f"{kernel} ({', '.join(names)})" for kernel, names in by_kernel.items())
        yield f"attention at {length} tokens: {'; '.join(words)}"


def _on_host(rows: Sequence[Latency]) -> Iterator[str]:
    """Nodes that compute, and that ONNX Runtime left on the CPU: a slowdown that nothing else shows."""
    for row in {row.name: row for row in rows}.values():
        heavy = {name: count for name, count in (row.on_host or {}).items() if name in HEAVY}
        if heavy:
            words = ", ".join(f"{count} {name}" for name, count in heavy.items())
            yield f"! of {row.name} ONNX Runtime runs on the CPU: {words}; its time is not the GPU's alone"
