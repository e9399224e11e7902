"""What is said below a table of a GPU's times."""

from __future__ import annotations

from pipeline.evals.bench import device_notes
from pipeline.evals.bench.table import BenchReport
from pipeline.store.records import GpuLoad, GpuState
from tests.evals.bench.test_table import HOW, printed, row

LOAD = GpuLoad(
    before=GpuState(sm_most_mhz=1980.0, watts_limit=700.0),
    after=GpuState(),
    sm_mhz=(1410.0, 1755.0, 1980.0),
    watts=(300.0, 300.2, 300.4),
    celsius=(40.0, 44.0, 51.0),
    readings=10,
    reasons={"its power limit": 0.4},
)


def test_a_load_in_words() -> None:
    assert device_notes.load_text(LOAD) == (
        "1755 MHz (1410 to 1980) of 1980, 300 W of 700, 51 °C; 40% of the time held by its power limit"
    )
    assert device_notes.load_text(GpuLoad(before=GpuState(), after=GpuState())) == "its clocks are not told"


def test_the_cpu_has_no_notes() -> None:
    assert (
        device_notes.notes([row("base.fp32"), row("a.fp32 (torch)", kind="torch", attention="eager")], HOW)
        == []
    )


def test_clocks_that_nothing_told_are_not_passed_over() -> None:
    (timing, unread) = device_notes.notes([row("base.fp16")], HOW.replaced(warm_up=2.0, timing="wall time"))
    assert timing == "wall time" and "no nvidia-smi that answers" in unread


def test_kernels_are_told_by_length_with_who_ran_them() -> None:
    rows = [
        row("base.fp16", 50, attention="unified unfused path"),
        row("a.fp16", 50, attention="unified unfused path"),
        row("base.fp16 (torch)", 50, kind="torch", attention="eager"),
        row("base.fp16", 100, attention="Memory Efficient Attention"),
        row("a.fp16", 100),
    ]
    assert device_notes.notes(rows, HOW) == [
        "attention at 50 tokens: unified unfused path (base.fp16, a.fp16); eager (base.fp16 (torch))",
        "attention at 100 tokens: Memory Efficient Attention (base.fp16)",
    ]


def test_what_computes_on_the_cpu_is_pointed_out_once_and_what_counts_shapes_is_not() -> None:
    host = {"Shape": 9, "Attention": 30, "Gather": 2, "MatMul": 1}
    rows = [row("a.fp16", length, on_host=host) for length in (50, 100)] + [
        row("b.fp16", on_host={"Shape": 3})
    ]
    assert device_notes.notes(rows, HOW) == [
        "! of a.fp16 ONNX Runtime runs on the CPU: 30 Attention, 1 MatMul; its time is not the GPU's alone"
    ]


def test_the_table_has_the_gpus_memory_and_its_problems() -> None:
    how = HOW.replaced(
        gpu={"50": LOAD, "100": LOAD.replaced(problems=("it was slowed by heat",))},
        warm_up=2.0,
        timing="wall time of everything",
    )
    rows = (
        row("attn5-7_9_25-26_28-29.fp16", 50, byte_ceiling=1.0, device_mb=14321.5, p50=6.543),
        row("base.fp16", 100, enough_clean=False, p50=6.25),
    )
    words = printed(BenchReport(rows, how, ()))
    flat = " ".join(words.split())
    assert max(map(len, words.splitlines())) <= 100 and "14322" in words and "6.54" in words
    assert "GPU" in words and "peak" not in words
    assert "? at 100 tokens the GPU was disturbed, so do not quote these rows: it was slowed by heat" in flat
    assert "GPU at 50 tokens: 1755 MHz" in flat and "wall time of everything" in flat
    assert "base.fp16 ?" in flat
    assert "other work used the processors" not in flat
    assert "GPU" not in printed(BenchReport((row("base.fp32"),), HOW, ()))
