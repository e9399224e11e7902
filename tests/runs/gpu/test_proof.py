"""Which commands a proof runs, on which machine, and what it leaves out."""

from __future__ import annotations

import dataclasses

import pytest
import typer

from pipeline.cli.commands import app
from runs.gpu import proof as proofs
from runs.gpu.machine import Machine
from runs.gpu.proof import Proof
from tests.runs.gpu.played import GPU, NO_GPU, commands, played

VARIANTS = ("attn24-31", "attn21-31", "mlp24-31", "mlp21-31")


def outcomes(proof: Proof, status: str) -> dict[str, str]:
    return {name: one.reason for name, one in proof.conductor.outcomes.items() if one.status == status}


@pytest.mark.parametrize("machine", [GPU, NO_GPU])
def test_every_command_is_one_that_pipeline_takes(machine: Machine) -> None:
    known = typer.main.get_command(app)
    assert isinstance(known, typer.main.TyperGroup)
    ran = commands(played(machine))
    for name, command in ran.items():
        if name != "checkpoint":
            known.commands[command[0]].make_context(command[0], list(command[1:]))
            assert command[-1] == "--json"


def test_on_a_gpu_everything_is_done() -> None:
    proof = played(GPU)
    ran = commands(proof)
    assert set(outcomes(proof, "done")) == set(proof.conductor.outcomes) == set(ran)
    for variant in ("base", *VARIANTS):
        graph = f"graphs/llama-2-7b-shape/{variant}.fp16.onnx"
        assert ran[f"export {variant}"][-3:-1] == ("--skip", variant)
        assert ran[f"check {variant}"] == ("check", graph, "--provider", "cuda", "--json")
        assert ran[f"build {variant}"][:4] == ("build-engine", graph, "--backend", "tensorrt")
        assert ran[f"check engine {variant}"][1] == f"engines/model/{variant}/tensorrt-sm80-fp16.plan"
        for what in ("bench graphs", "decode graphs"):
            assert graph in ran[what] and {"--compare", "torch"} < set(ran[what])
            assert "--unchecked" not in ran[what]
    assert "--decode" in ran["decode engines"] and "--decode" not in ran["bench engines"]
    assert ran["predict"][2:4] == ("--gpu", "a100")
    assert {name for name in ran if name.startswith("128 tokens")} == {
        f"128 tokens {name}" for name in ("base", "attn21-31", "mlp21-31", "engine", "static engine")
    }
    static = "graphs/llama-2-7b-shape/base.fp16.static256.onnx"
    assert ran["export base static"][-5:-1] == ("--cache", "static", "--max-tokens", "256")
    assert ran["build base static"][:4] == ("build-engine", static, "--backend", "tensorrt")
    assert ran["128 tokens static engine"][1] == ran["check engine base static"][1]
    assert ran["demo cuda"][1] == proofs.DEMO == ran["demo cpu"][1]


def test_weights_of_4_bits_come_last_beside_the_base_in_fp16() -> None:
    ran = commands(played(GPU))
    names = ("base", "attn21-31")
    stages = [f"{one} {name} int4" for name in names for one in ("export", "build")]
    stages += [f"check engine {name} int4" for name in names] + ["bench int4 engines", "decode int4 engines"]
    assert list(ran)[-len(stages) :] == stages
    engines = [ran["check engine base"][1]]
    for name in names:
        graph = f"graphs/llama-2-7b-shape/{name}.int4-fp16.onnx"
        assert {"--precision", "int4-fp16", "--skip", name} < set(ran[f"export {name} int4"])
        assert ran[f"build {name} int4"][:4] == ("build-engine", graph, "--backend", "tensorrt")
        engines.append(f"engines/model/{name}/tensorrt-sm80-int4-fp16.plan")
        assert ran[f"check engine {name} int4"][1] == engines[-1]
    for stage in ("bench int4 engines", "decode int4 engines"):
        assert list(ran[stage][1:4]) == engines and "--compare" not in ran[stage]


def test_weights_of_4_bits_may_be_left_out() -> None:
    with_them, without = commands(played(GPU)), commands(played(GPU, with_int4=False))
    assert list(without) == [name for name in with_them if "int4" not in name]


def test_weights_of_4_bits_are_timed_where_all_three_engines_are_there_and_fit() -> None:
    """A 7B's weights: 13.48 GB in fp16; in 4 bits 3.96, and 3.57 without 11 attentions."""
    skipped = outcomes(played(GPU, failing=frozenset({"export base int4"})), "skipped")
    assert skipped["bench int4 engines"] == "needs `build base int4`, which was skipped"
    assert "bench int4 engines" not in outcomes(
        played(dataclasses.replace(GPU, device_bytes=23.5e9)), "skipped"
    )
    skipped = outcomes(played(dataclasses.replace(GPU, device_bytes=20e9)), "skipped")
    assert skipped["decode int4 engines"].startswith("3 artefacts of 21.0 GB")


def test_a_rehearsal_builds_engines_and_runs_none() -> None:
    proof = played(NO_GPU)
    ran = commands(proof)
    assert ran["check base"][1] == "graphs/llama-2-7b-shape/base.fp32.onnx"
    assert ran["build base"][4:6] == ("--target", "sm80")
    skipped = outcomes(proof, "skipped")
    assert set(skipped) == {
        *(f"check engine {name}" for name in ("base", *VARIANTS)),
        *("check engine base static", "bench engines", "decode engines"),
        *(
            "check engine base int4",
            "check engine attn21-31 int4",
            "bench int4 engines",
            "decode int4 engines",
        ),
        *("128 tokens engine", "128 tokens static engine"),
    }
    assert set(skipped.values()) == {NO_GPU.engines_lack}
    assert "demo cuda" not in ran and "demo cpu" in ran


def test_a_check_that_fails_leaves_the_others_and_is_said_in_the_measurement() -> None:
    proof = played(GPU, failing=frozenset({"check attn21-31"}))
    assert set(outcomes(proof, "failed")) == {"check attn21-31"} and not outcomes(proof, "skipped")
    ran = commands(proof)
    assert "--unchecked" in ran["bench graphs"] and "--unchecked" not in ran["bench engines"]


def test_what_was_not_made_is_left_out() -> None:
    proof = played(GPU, failing=frozenset({"export mlp24-31", "build base"}))
    ran, skipped = commands(proof), outcomes(proof, "skipped")
    needs = "needs `export mlp24-31`, which was failed"
    assert skipped["check mlp24-31"] == skipped["build mlp24-31"] == needs
    assert not any("mlp24-31.fp16.onnx" in part for part in ran["bench graphs"])
    assert skipped["bench engines"].startswith("needs the base")
    assert skipped["128 tokens engine"] == "needs `build base`, which was failed"


def test_without_a_checkpoint_the_demo_is_still_run() -> None:
    proof = played(GPU, failing=frozenset({"checkpoint"}))
    assert set(outcomes(proof, "done")) == {"export demo", "demo cuda", "demo cpu"}


def test_what_a_machine_lacks_is_the_reason() -> None:
    lacks = {"graphs_lack": "no cuBLAS", "engines_lack": "no TensorRT", "demo_lack": "no demo"}
    lacking = dataclasses.replace(GPU, backend=None, known_as=None, **lacks)
    skipped = outcomes(played(lacking), "skipped")
    assert skipped["check base"] == skipped["bench graphs"] == skipped["128 tokens base"] == "no cuBLAS"
    assert skipped["build base"] == skipped["check engine base"] == "no TensorRT"
    assert skipped["export demo"] == "no demo"
    assert "NVIDIA A100-SXM4-80GB" in skipped["predict"]


def test_pytorch_without_cuda_is_compared_with_on_the_cpu_and_not_timed() -> None:
    ran = commands(played(dataclasses.replace(GPU, torch_lack="built without CUDA")))
    assert ran["check base"][2:4] == ("--provider", "auto") and ran["checkpoint"][-1] == "cpu"
    assert "--compare" not in ran["bench graphs"]


def test_few_artefacts_at_a_time_where_memory_is_short() -> None:
    """A 7B base in fp16 has 13.5 GB: with a variant and PyTorch's models beside them, nearly 60."""
    ran = commands(played(dataclasses.replace(GPU, device_bytes=60e9)))
    benches = [ran[f"bench graphs{end}"] for end in ("", " 2", " 3", " 4")]
    assert all(command[1].endswith("base.fp16.onnx") and "torch" in command for command in benches)
    assert [command[2].split("/")[-1].split(".")[0] for command in benches] == list(VARIANTS)
