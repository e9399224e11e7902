"""`--select evo` as a user runs it: select, export and their options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.calib.evolution import selection
from pipeline.types import SkipSet, UserError
from tests.commands import run

START = ("--select", "evo", "--start", "last", "--generations", "2")


def test_select_and_export_leave_out_the_same(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = json.loads(run(capsys, "select", "m", "--kind", "mlp", "--count", "1", *START, "--json"))
    assert choice["select"] == "evo" and choice["kind"] == "mlp" and len(choice["mlp"]) == 1
    assert choice["chosen"][0][0] == choice["skip"] and "no mask near the best was left" in choice["note"]
    monkeypatch.setattr(selection, "next_generation", None)  # it is read
    graph = run(capsys, "export", "m", "--skip", "mlp", "--count", "1", *START).strip()
    assert graph.endswith(f"{choice['skip']}.fp32.onnx")
    words = run(capsys, "select", "m", "--kind", "mlp", "--count", "1", *START)
    assert words.startswith(choice["skip"]) and "goes" in words and "stays" in words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", "5"), "--minutes belongs to --select evo, and the rule is last; leave it out"),
        (
            ("--select", "greedy", "--compensated"),
            "--compensated belongs to --select evo, and the rule is greedy",
        ),
        (("--select", "evo", "--minutes", "0"), "--minutes 0 is not a number above 0"),
        (("--select", "evo", "--generations", "0"), "--generations 0 is not at least 1"),
        (("--select", "evo", "--start", "attn0"), "--start attn0 does not leave out 1 MLPs"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (("select", "m", "--kind", "mlp"), ("export", "m", "--skip", "mlp")):
        with pytest.raises(UserError) as error:
            run(capsys, *line, "--count", "1", *options)
        assert message in str(error.value)
    assert not list(Path("calib").glob("m/evo-*"))


def test_for_a_time_the_other_rules_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rule in ("greedy", "last", "random"):
        with pytest.raises(
            UserError, match=f"--select {rule} takes a --count; for a time choose cosine or evo"
        ):
            run(capsys, "select", "m", "--speedup", "1.1", "--select", rule)


@pytest.mark.slow
def test_a_time_is_searched_and_its_finalist_measured(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import timing
    from pipeline.store.records import SublayerTimes

    known = SublayerTimes(whole=1.0, attn=0.1, mlp=0.2)
    monkeypatch.setattr(timing, "sublayer_times", lambda *_: known)
    run(capsys, "calibrate", "m", "--samples", "2", "--length", "16")
    line = ("select", "m", "--speedup", "1.0001", "--length", "8", "--select", "evo", "--samples", "2")
    choice = json.loads(run(capsys, *line, "--generations", "3", "--json"))
    skip = SkipSet(tuple(choice["attention"]), tuple(choice["mlp"]))
    assert skip and choice["select"] == "evo" and choice["rounds"][-1]["skip"] == choice["skip"]
    if choice["reached"]:
        assert choice["runners_up"][0][0] == choice["skip"]
