"""A proof whose commands are not run: each stage gives what was written for it here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from runs.gpu import shapes
from runs.gpu.machine import Machine
from runs.gpu.proof import Proof
from runs.gpu.stages import Conductor, Outcome, Stage

NOWHERE = Path("/nowhere")
GPU = Machine(
    provider="cuda",
    graphs_lack=None,
    torch_lack=None,
    backend="tensorrt",
    engines_lack=None,
    target=None,
    demo_lack=None,
    gpu="NVIDIA A100-SXM4-80GB",
    known_as="a100",
    device_bytes=80e9 * 3,
    host_bytes=1e12,
    versions={"torch": "2.13.0"},
)
NO_GPU = dataclasses.replace(
    GPU,
    provider="cpu",
    backend="tensorrt-rtx",
    engines_lack="engines run on an NVIDIA GPU only",
    target="sm80",
    gpu=None,
    device_bytes=None,
)


def _check(path: str) -> list[dict[str, Any]]:
    noise = {"one": {"prefill/logits": {"max_rel": 0.002}, "present.0.key": {"max_rel": 0.5}}}
    worst = {"max_rel": 0.001, "top1": 1.0}
    return [{"passed": True, "worst": worst, "noise": noise, "device": "a GPU", "failures": []}]


def _bench(command: tuple[str, ...]) -> dict[str, Any]:
    """Of the n-th artefact: 10 − n ms, and in PyTorch 40 − 10 · n."""
    paths = [one for one in command[1:] if one.endswith((".onnx", ".plan"))]
    rows = []
    for length in command[command.index("--lengths") + 1].split(","):
        for number, path in enumerate(paths):
            own = {"artefact": path, "length": int(length), "interval": [9.0 * number, 11.0 * number]}
            own |= {"improvement": 10.0 * number, "ceiling": 20.0, "byte_ceiling": None}
            if "int4" in path:
                plain = {"improvement": 60.0 + number, "interval": [60.0, 65.0], "ceiling": 70.0}
                own |= {"over_plain": plain if "--decode" in command else {**plain, "ceiling": None}}
            name = "base.fp16" if number == 0 else "other.fp16"
            device = {"device_mb": 900.0, "attention": "Flash | split", "enough_clean": length != "100"}
            device["on_host"] = {"Shape": 7, "MatMul": 2} if number == 1 else None
            rows.append({**own, **device, "name": name, "kind": "artefact", "p50": 10.0 - number})
            if "--compare" in command:
                rows.append({**own, "name": f"{name} (torch)", "kind": "torch", "p50": 40.0 - 10 * number})
    still: dict[str, Any] = {
        "before": {"sm_most_mhz": 1410.0},
        "after": {},
        "sm_mhz": [1395.0, 1400.0, 1410.0],
    }
    gpu = {"50": still, "100": {**still, "problems": ["it was slowed by heat"]}}
    conditions: dict[str, Any] = {"decode": "--decode" in command, "checked": "--unchecked" not in command}
    return {"conditions": {**conditions, "gpu": gpu}, "rows": rows}


def _predict() -> dict[str, Any]:
    one = {"engine_ms": 7.0, "engine_saved": 8.0, "eager_ms": 30.0, "eager_saved": 21.0}
    names = ("base", *shapes.find("7b").variants)
    rows = [
        {"variant": name, "length": length, "prefill": one, "decode": {**one, "engine_ms": 6.0}}
        for name in names
        for length in (50, 100)
    ]
    return {"predictions": [{"rows": rows}]}


def output(stage: Stage) -> Any:
    """What the command of a stage prints."""
    kind, *rest = stage.command
    if kind == "check":
        return _check(rest[0])
    if kind == "bench":
        return _bench(stage.command)
    if kind == "predict":
        return _predict()
    if kind == "build-engine":
        variant, form = Path(rest[0]).name.removesuffix(".onnx").split(".", maxsplit=1)
        figures = {"parse_seconds": 1.5, "build_seconds": 40.0, "process_peak_mb": 2500, "num_layers": 9}
        return [{"path": f"engines/model/{variant}/tensorrt-sm80-{form}.plan", "build": figures}]
    if kind == "generate":
        return {"tokens": [1, 2, 3], "text": "Paris | a city", "first_ms": 9.0, "ms_a_token": 8.0}
    return None


class PlayedConductor(Conductor):
    """Runs nothing; `failing` names stages that fail."""

    failing: frozenset[str] = frozenset()
    played: list[Stage]

    def _outcome(self, stage: Stage, limit: float) -> Outcome:
        self.played = [*getattr(self, "played", []), stage]
        if stage.name in self.failing:
            return Outcome(stage.name, stage.words, "failed", "exit 2: broken", 1.0, limit)
        return Outcome(stage.name, stage.words, "done", "", 1.0, limit, output(stage))


def played(
    machine: Machine,
    shape: str = "7b",
    failing: frozenset[str] = frozenset(),
    with_int4: bool = True,
    folder: Path = NOWHERE,
) -> Proof:
    """A proof that was run to its end, in a folder that may hold what its commands would have written."""
    conductor = PlayedConductor(folder, folder, 100.0, 1000.0)
    conductor.failing = failing
    proof = Proof(shapes.find(shape), machine, conductor, sequences=20, with_int4=with_int4)
    proof.run()
    return proof


def commands(proof: Proof) -> dict[str, tuple[str, ...]]:
    """Stage → the command that was run."""
    assert isinstance(proof.conductor, PlayedConductor)
    return {stage.name: stage.command for stage in proof.conductor.played}
