"""What the page and the JSON say."""

from __future__ import annotations

import json
from pathlib import Path

from runs.gpu import page, results
from runs.gpu.proof import Proof
from tests.runs.gpu.played import GPU, NO_GPU, played


def written(proof: Proof) -> str:
    return page.markdown(proof, results.findings(proof), "2026-11-28T12:00:00+00:00")


def test_numbers_stand_beside_the_papers_and_the_predicted() -> None:
    text = written(played(GPU))
    assert text.startswith("# Llama-2-7B of random weights on NVIDIA A100-SXM4-80GB\n\n**passed**: ")
    section = text.split("## 1 token from 50")[1].split("##")[0]
    row = next(line for line in section.splitlines() if "attn21-31 | onnxruntime" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == [
        *("8.00", "20.0 [18.0, 22.0]", "20.0", "20.00", "50.0"),
        *("21.5", "7.000", "8.0", "30.000", "21.0"),
    ]
    assert "| mlp24-31 | tensorrt |" in section and "it names no GPU" in section
    assert "Paris \\| a city" in text and "125.0" in text  # tokens a second


def test_engines_of_4_bits_stand_beside_those_in_fp16(tmp_path: Path) -> None:
    plan = tmp_path / "engines/model/base/tensorrt-sm80-int4-fp16.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(bytes(1_500_000))
    text = written(played(GPU, folder=tmp_path))
    engines = text.split("## Engines")[1].split("##")[0]
    assert "| base | tensorrt, int4 | 1.5 | 41.5 | 2500 | 9 |" in engines
    assert "| base | tensorrt | – | 41.5 | 2500 | 9 |" in engines
    step = text.split("## One further token on a cache of 100")[1].split("##")[0]
    assert "`saved` and `ceiling` are against the base in fp16" in step
    assert "| base ? | tensorrt, int4 | 9.00 | 61.0 [60.0, 65.0] | 70.0 |" in step
    assert "| base ? | tensorrt | 10.00 | – | – |" in step
    without = written(played(GPU, with_int4=False))
    assert "int4" not in without and "against the base in fp16" not in without


def test_how_the_gpu_ran_it_is_said() -> None:
    text = written(played(GPU))
    assert "| base ? | onnxruntime |" in text and "`?`: other work or heat disturbed it" in text
    assert "`?`" not in text.split("## 1 token from 50")[1].split("##")[0]
    kernels = text.split("## Kernels and memory")[1].split("##")[0]
    assert "| attn24-31 | onnxruntime | 50 | Flash \\| split | 900 | 2 MatMul |" in kernels
    assert "| base | tensorrt | 100 cached | Flash \\| split | 900 | – |" in kernels
    loads = text.split("## The GPU while it was timed")[1].split("##")[0]
    assert "| bench graphs | 100 | 1400 MHz (1395 to 1410) of 1410 | it was slowed by heat |" in loads


def test_every_table_has_as_many_cells_in_each_row() -> None:
    for block in written(played(GPU)).split("\n\n"):
        if block.startswith("|"):
            counts = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(counts) == 1


def test_a_rehearsal_says_that_it_is_one() -> None:
    proof = played(NO_GPU)
    text = written(proof)
    assert "on a CPU (rehearsal)" in text and "no number in it is a GPU's" in text
    assert page.passed(proof, results.findings(proof))


def test_what_failed_was_skipped_or_had_not_passed_is_said() -> None:
    proof = played(GPU, failing=frozenset({"check base", "build base"}))
    text = written(proof)
    assert "**NOT PASSED**" in text and "| check base | failed | 1 | 100 | exit 2: broken |" in text
    assert "needs `build base`, which was failed" in text and "| base * |" in text
    assert not page.passed(proof, results.findings(proof))


def test_nothing_checked_is_not_passed() -> None:
    names = {"checkpoint"}
    proof = played(GPU, failing=frozenset(names))
    proof.conductor.outcomes.pop("checkpoint")  # all that is left was done or skipped
    assert {one.status for one in proof.conductor.outcomes.values()} == {"done", "skipped"}
    assert not page.passed(proof, results.findings(proof))


def test_what_was_ended_before_its_end_says_so() -> None:
    proof = played(GPU)
    proof.is_finished = False
    assert "**NOT FINISHED**: " in written(proof) and not page.passed(proof, results.findings(proof))


def test_the_json_holds_the_same() -> None:
    proof = played(GPU)
    record = page.record(proof, results.findings(proof), "now")
    plain = json.loads(json.dumps(record))
    assert plain["passed"] and plain["shape"]["num_hidden_layers"] == 32 and plain["started"] == "now"
    assert (
        {one["status"] for one in plain["stages"]} == {"done"}
        and len(plain["times"]) == 36
        and len(plain["engines"]) == 8
    )
    assert plain["machine"]["gpu"] == GPU.gpu and plain["stages"][0]["command"].startswith(
        "python -m runs.gpu"
    )
