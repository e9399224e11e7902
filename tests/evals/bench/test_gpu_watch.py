"""What a GPU does beside a measurement, from an nvidia-smi that a test writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.evals.bench import gpu_watch
from pipeline.runtime import tensorrt_library
from pipeline.store.records import GpuLoad, GpuState

ROW = "1980, 1980, 2619, 312.45, 700.00, 54, 3, 1234, 0x0000000000000004"
QUIET = GpuState(sm_mhz=345.0, busy=0.0)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi of a modern driver, and the file of what it was asked."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/asked
case "$*" in
*query-compute-apps*) cat {tmp_path}/processes 2>/dev/null ;;
*loop-ms*) while true; do cat {tmp_path}/row; sleep 0.05; done ;;
*) cat {tmp_path}/row ;;
esac
"""
    )
    tool.chmod(0o755)
    (tmp_path / "row").write_text(ROW + "\n")
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(tensorrt_library, "gpu_bus", lambda: "0000:65:00.0")
    return tmp_path


def test_a_reading(smi: Path) -> None:
    state = gpu_watch.state()
    assert state == GpuState(
        sm_mhz=1980.0,
        sm_most_mhz=1980.0,
        memory_mhz=2619.0,
        watts=312.45,
        watts_limit=700.0,
        celsius=54.0,
        busy=3.0,
        used_mb=1234.0,
        reasons=("its power limit",),
    )
    (asked,) = (smi / "asked").read_text().splitlines()
    assert asked.startswith("--id=0000:65:00.0 --query-gpu=clocks.sm,clocks.max.sm,")
    assert asked.endswith(",clocks_event_reasons.active --format=csv,noheader,nounits")


def test_what_a_driver_does_not_tell_is_none(smi: Path) -> None:
    (smi / "row").write_text("[N/A], [N/A], 2619, [Not Supported], N/A, 54, [N/A], 7, [N/A]\n")
    assert gpu_watch.state() == GpuState(memory_mhz=2619.0, celsius=54.0, used_mb=7.0)


def test_an_old_driver_has_another_name_for_the_reasons(smi: Path) -> None:
    tool = smi / "bin" / "nvidia-smi"
    old = 'case "$*" in *clocks_event_reasons*) echo "Field is not a valid field to query."; exit 2;; esac'
    tool.write_text(tool.read_text().replace("#!/bin/sh", f"#!/bin/sh\n{old}"))
    state = gpu_watch.state()
    assert state is not None and state.reasons == ("its power limit",)
    with gpu_watch.watching() as watch:
        assert _awaited(watch)[0].sm_mhz == 1980.0


@pytest.mark.parametrize("script", [None, "exit 9", "echo 'No devices were found'; exit 6"])
def test_where_nothing_tells_nothing_is_told(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_watch.state() is None and gpu_watch.others() == ()
    with gpu_watch.watching() as watch:
        watch.begin()
        assert watch.readings() == []
    assert gpu_watch.load(None, None, [], []) is None


def test_only_processes_of_others_count(smi: Path) -> None:
    """Not this one, its parent or its child, nor a number that is nobody's here, as containers list them."""
    with (
        subprocess.Popen(["sleep", "60"]) as child,
        subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True) as maker,
    ):
        assert maker.stdout is not None
        orphan = int(maker.stdout.readline())
        maker.wait()
        rows = [(os.getpid(), "me"), (os.getppid(), "parent"), (child.pid, "child"), (2**22 + 7, "nobody")]
        lines = [f"{number}, {name}" for number, name in [*rows, (orphan, "/usr/bin/python, with comma")]]
        (smi / "processes").write_text("\n".join([*lines, "[N/A], [Insufficient Permissions]"]) + "\n")
        try:
            assert gpu_watch.others() == (f"{orphan} /usr/bin/python, with comma",)
        finally:
            child.kill()
            os.kill(orphan, 9)


_ORPHAN = """
import subprocess
print(subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
"""


def _awaited(watch: gpu_watch.Watch) -> list[GpuState]:
    """The readings, as soon as there is one."""
    until = time.monotonic() + 20
    while not watch.readings() and time.monotonic() < until:
        time.sleep(0.02)
    return watch.readings()


def test_readings_of_the_warm_up_are_left_out(smi: Path) -> None:
    with gpu_watch.watching() as watch:
        assert _awaited(watch)[0].sm_mhz == 1980.0
        watch.begin()
        (smi / "next").write_text(ROW.replace("1980,", "1500,", 1) + "\n")
        (smi / "next").rename(smi / "row")
        until = time.monotonic() + 20
        while watch.readings()[-1].sm_mhz != 1500.0 and time.monotonic() < until:
            time.sleep(0.02)
        readings = watch.readings()
        assert readings[-1].sm_mhz == 1500.0 and len(readings) < len(watch._all())
    asked = (smi / "asked").read_text()
    assert "--loop-ms=500" in asked


def test_a_run_without_a_reading_of_its_own_has_the_last_before(tmp_path: Path) -> None:
    watch = gpu_watch.Watch(tmp_path / "readings.csv")
    (tmp_path / "readings.csv").write_text(f"{ROW}\n{ROW.replace('1980', '1700')}\n1980, 19")  # half a line
    watch.begin()
    assert [one.sm_mhz for one in watch.readings()] == [1700.0]


def _load(*readings: GpuState, before: GpuState = QUIET, processes: tuple[str, ...] = ()) -> GpuLoad:
    load = gpu_watch.load(before, QUIET, readings, processes)
    assert load is not None
    return load


def test_a_run_at_its_power_limit_is_the_cards_own() -> None:
    capped = ("its power limit", "the clocks that were set")
    load = _load(
        GpuState(sm_mhz=1400.0, watts=700.0, reasons=capped), GpuState(sm_mhz=1500.0), GpuState(sm_mhz=1900.0)
    )
    assert load.problems == () and load.readings == 3 and load.celsius is None
    assert load.sm_mhz == (1400.0, 1500.0, 1900.0) and load.watts == (700.0, 700.0, 700.0)
    assert load.reasons == pytest.approx(dict.fromkeys(capped, 1 / 3))


def test_heat_and_others_are_problems() -> None:
    assert _load().problems == ()
    hot = _load(GpuState(reasons=("heat",)), GpuState(reasons=("the power supply",)))
    assert hot.problems == ("it was slowed by heat and the power supply",)
    shared = _load(processes=("7 python",), before=GpuState(busy=97.0))
    assert shared.problems == (
        "other processes use it: 7 python",
        "it was 97 % busy when nothing was timed",
    )
    assert _load(before=GpuState(busy=gpu_watch.BUSY)).problems == ()


@pytest.mark.skipif(shutil.which("stdbuf") is None, reason="no stdbuf")
def test_a_tool_that_fills_its_buffer_first_is_read_too(smi: Path) -> None:
    """A C program's output into a file is buffered, and lost when it is ended."""
    tool = smi / "bin" / "nvidia-smi"
    loop = f"while true; do cat {smi}/row; sleep 0.05; done"
    assert loop in tool.read_text()
    rows = f"mkfifo {smi}/rows; while cat {smi}/row; do sleep 0.7; done > {smi}/rows &"
    tool.write_text(tool.read_text().replace(loop, f"{rows} exec cut -d, -f1-9 < {smi}/rows"))
    with gpu_watch.watching() as watch:
        assert _awaited(watch)[0].sm_mhz == 1980.0
