"""The bound on a GPU's memory: what it is, and what it refuses."""

from __future__ import annotations

import pytest

from pipeline.runtime import device_memory
from pipeline.types import UserError


def test_there_is_no_bound_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", None):
        if text is None:
            monkeypatch.delenv(device_memory.VARIABLE)
        else:
            monkeypatch.setenv(device_memory.VARIABLE, text)
        assert device_memory.bound() is None
        device_memory.require_room("all the weights there are", 1e15)


@pytest.mark.parametrize("text", ["much", "0", "-3", "nan", "inf", "1e999"])
def test_a_bound_is_a_number_above_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device_memory.VARIABLE, text)
    with pytest.raises(UserError, match=f"is a number of GB above 0, not '{text}'"):
        device_memory.bound()


def test_what_is_larger_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device_memory.VARIABLE, "1.5")
    assert device_memory.bound() == 1_500_000_000
    device_memory.require_room("the weights", 1.5e9)
    with pytest.raises(UserError) as caught:
        device_memory.require_room("the weights of g", 13.476e9)
    assert str(caught.value) == (
        "the weights of g need 13.5 GB of the GPU's memory, and --device-memory gives 1.5 GB"
    )


def test_a_full_gpu_is_told_from_other_errors() -> None:
    def error(room: str, words: str) -> Exception:
        return type("Error", (RuntimeError,), {"__module__": room})(words)

    full = (
        error("torch", "CUDA out of memory. Tried to allocate 2.00 GiB."),
        error(
            "onnxruntime.capi.onnxruntime_pybind11_state", "Failed to allocate memory for requested buffer"
        ),
        error("onnxruntime.capi", "BFCArena::AllocateRawInternal Available memory of 5 is smaller than 7"),
    )
    assert all(map(device_memory.ran_out, full))
    others = (error("torch", "device-side assert"), error("x", "out of memory"), MemoryError("out of memory"))
    assert not any(map(device_memory.ran_out, others))
