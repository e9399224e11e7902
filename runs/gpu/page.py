"""The page and the JSON of a proof."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pipeline import __version__
from pipeline.report import papers
from runs.gpu.proof import CACHED, TOKENS, Proof
from runs.gpu.rows import DemoRow, EngineRow, Findings, LoadRow, TextRow, TimeRow
from runs.gpu.stages import Outcome

NOTHING = "–"
TIME_HEADINGS = (
    "variant",
    "runs in",
    "ms",
    "saved %",
    "ceiling %",
    "PyTorch ms",
    "saved %",
    "paper saved %",
    "predicted engine ms",
    "saved %",
    "predicted eager ms",
    "saved %",
)


def record(proof: Proof, found: Findings, started: str) -> dict[str, Any]:
    """Everything, for machines.

    Args:
        proof: that was run.
        found: what it found.
        started: date and time, ISO 8601.
    """
    return {
        "what": "gpu proof",
        "pipeline": __version__,
        "started": started,
        "seconds": round(proof.conductor.spent, 1),
        "finished": proof.is_finished,
        "passed": passed(proof, found),
        "shape": {"name": proof.shape.key, **proof.shape.config},
        "sequences": proof.sequences,
        "machine": asdict(proof.machine),
        "stages": [one.plain() for one in proof.conductor.outcomes.values()],
        **asdict(found),
    }


def passed(proof: Proof, found: Findings) -> bool:
    """Whether all was gone through, nothing failed, and something was checked: skipping proves nothing."""
    failed = any(one.status == "failed" for one in proof.conductor.outcomes.values())
    return proof.is_finished and not failed and any(one.passed for one in found.checks)


def markdown(proof: Proof, found: Findings, started: str) -> str:
    """The page, for people; the arguments are those of `record`."""
    parts = [_head(proof, found, started), _stages(proof.conductor.outcomes.values())]
    if found.engines:
        parts.append(_engines(found.engines))
    if found.checks:
        parts.append(_checks(found))
    for length, is_decode in sorted({(one.length, one.is_decode) for one in found.times}, key=_order):
        rows = [one for one in found.times if (one.length, one.is_decode) == (length, is_decode)]
        parts.append(_times(proof, rows, length, is_decode))
    if any(one.device_mb is not None or one.attention or one.on_host for one in found.times):
        parts.append(_kernels(found.times))
    if found.loads:
        parts.append(_loads(found.loads))
    if found.texts:
        parts.append(_texts(found.texts))
    if found.demo:
        parts.append(_demo(found.demo))
    return "\n\n".join(parts) + "\n"


def _order(place: tuple[int, bool]) -> tuple[bool, int]:
    return place[1], place[0]


def _head(proof: Proof, found: Findings, started: str) -> str:
    machine, outcomes = proof.machine, proof.conductor.outcomes.values()
    counts = {status: sum(one.status == status for one in outcomes) for status in _STATUSES}
    where = "a CPU (rehearsal)" if machine.is_rehearsal else machine.gpu
    verdict = "passed" if passed(proof, found) else "NOT PASSED" if proof.is_finished else "NOT FINISHED"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"# {proof.shape.title} of random weights on {where}",
        f"**{verdict}**: " + ", ".join(f"{count} stages {status}" for status, count in counts.items()) + ".",
        f"{started}, {proof.conductor.spent / 60:.1f} minutes; pipeline {__version__}, {versions}.",
    ]
    if machine.is_rehearsal:
        lines.append(
            "This was a rehearsal: it shows that the stages run here, and no number in it is a GPU's. "
            f"What is predicted is predicted for the GPU `{machine.known_as}`."
        )
    lacks = (
        ("graphs on CUDA", machine.graphs_lack),
        ("PyTorch on CUDA", machine.torch_lack),
        ("engines", machine.engines_lack),
    )
    lines += [f"Missing, {what}: {lack}." for what, lack in lacks if lack]
    lines.append("Weights are random: times and rounding are those of the shape, texts mean nothing.")
    return "\n\n".join(lines)


_STATUSES = ("done", "failed", "skipped")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None, form: str = ".1f") -> str:
    return NOTHING if value is None else format(value, form)


def _stages(outcomes: Iterable[Outcome]) -> str:
    rows = [
        (one.name, one.status, f"{one.seconds:.0f}", f"{one.limit:.0f}", one.reason or NOTHING)
        for one in outcomes
    ]
    return "## Stages\n\n" + _table(("stage", "outcome", "s", "limit s", "why"), rows)


def _engines(engines: Iterable[EngineRow]) -> str:
    cells = [
        (
            one.variant,
            one.runtime,
            _number(one.plan_mb),
            _number(one.seconds),
            _number(one.peak_mb, ".0f"),
            str(one.layers),
        )
        for one in engines
    ]
    headings = ("variant", "runs in", "plan MB", "build s", "memory of the build, MB", "layers")
    return f"## Engines\n\n{_table(headings, cells)}"


def _checks(found: Findings) -> str:
    rows = [
        (
            one.variant,
            one.runtime,
            "passed" if one.passed else f"FAILED: {one.failure}",
            _number(one.max_rel, ".1e"),
            _number(one.noise, ".1e"),
            _number(one.top1, ".0%"),
            one.device,
        )
        for one in found.checks
    ]
    headings = ("variant", "runs in", "check", "max rel", "PyTorch fp16's own", "top-1 equal", "device")
    text = (
        "Beside PyTorch in fp32: prefill, 8 decoding steps on the artefact's own cache, padded batches. "
        "`max rel` is the worst of all logits."
    )
    return f"## Checks\n\n{text}\n\n{_table(headings, rows)}"


def _times(proof: Proof, rows: Sequence[TimeRow], length: int, is_decode: bool) -> str:
    title = f"One further token on a cache of {length}" if is_decode else f"1 token from {length}"
    notes = [
        f"Median of {proof.sequences} sequences, base and variants in turn; `saved` with its 95 % interval."
    ]
    if proof.shape.paper and not is_decode:
        notes.append(f"Paper: {papers.citation('tyukin', 'tables 7 and 9')}; it names no GPU.")
    if any(one.variant == "base" and not one.is_base for one in rows):
        notes.append("`int4`: weights of 4 bits; `saved` and `ceiling` are against the base in fp16.")
    if not all(one.is_checked for one in rows):
        notes.append("`*`: not every artefact of that run had passed its check.")
    if any(one.is_disturbed for one in rows):
        notes.append("`?`: other work or heat disturbed it; do not quote it.")
    if not any(one.engine_ms is not None for one in rows):
        notes.append("Nothing is predicted: see the stage `predict`.")
    cells = [
        (
            one.variant + ("" if one.is_checked else " *") + (" ?" if one.is_disturbed else ""),
            one.runtime,
            _number(one.ms, ".2f"),
            NOTHING if one.is_base else f"{one.saved:.1f} [{one.low:.1f}, {one.high:.1f}]",
            _of_variant(one, one.ceiling),
            _number(one.torch_ms, ".2f"),
            _of_variant(one, one.torch_saved),
            _number(one.paper_saved),
            _number(one.engine_ms, ".3f"),
            _of_variant(one, one.engine_saved),
            _number(one.eager_ms, ".3f"),
            _of_variant(one, one.eager_saved),
        )
        for one in rows
    ]
    return f"## {title}\n\n{' '.join(notes)}\n\n{_table(TIME_HEADINGS, cells)}"


def _of_variant(row: TimeRow, value: float | None) -> str:
    """The base saves nothing."""
    return NOTHING if row.is_base else _number(value)


def _kernels(times: Iterable[TimeRow]) -> str:
    cells = [
        (
            one.variant,
            one.runtime,
            f"{one.length} cached" if one.is_decode else str(one.length),
            one.attention or NOTHING,
            _number(one.device_mb, ".0f"),
            one.on_host or NOTHING,
        )
        for one in times
    ]
    headings = ("variant", "runs in", "tokens", "attention", "GPU MB", "computes on the CPU")
    text = (
        "Which kernel attention ran on, where the runtime tells (an engine does not); the memory of the GPU "
        "that a process took which ran this artefact alone; and what ONNX Runtime left on the CPU: it slows."
    )
    return f"## Kernels and memory\n\n{text}\n\n{_table(headings, cells)}"


def _loads(loads: Iterable[LoadRow]) -> str:
    cells = [(one.run, str(one.length), one.text, one.problems or NOTHING) for one in loads]
    text = "As nvidia-smi told it twice a second: median clock and power (lowest to highest), highest heat."
    headings = ("run", "tokens", "GPU", "disturbed")
    return f"## The GPU while it was timed\n\n{text}\n\n{_table(headings, cells)}"


def _texts(texts: Iterable[TextRow]) -> str:
    rows = [
        (
            one.variant,
            one.runtime,
            str(one.tokens),
            _number(one.first_ms),
            _number(one.ms, ".2f"),
            _number(1e3 / one.ms if one.ms else None),
            _number(one.engine_ms, ".3f"),
        )
        for one in texts
    ]
    headings = ("variant", "runs in", "tokens", "first ms", "ms a token", "tokens/s", "predicted ms")
    text = (
        f"`pipeline generate`, {TOKENS} tokens one after another; the cache stays on the device, and the "
        "host picks each token. The first one warms up. Predicted: an engine's step on a cache of "
        f"{CACHED} tokens."
    )
    return f"## {TOKENS} tokens\n\n{text}\n\n{_table(headings, rows)}"


def _demo(rows: Iterable[DemoRow]) -> str:
    same = {None: NOTHING, True: "the same", False: "ANOTHER"}
    cells = [(one.provider, same[one.is_same], " ".join(one.text.split())) for one in rows]
    headings = ("on", "as on the CPU", "text")
    return f"## The demo model\n\nGreedy, fp32; real weights.\n\n{_table(headings, cells)}"
