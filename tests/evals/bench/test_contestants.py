"""What is timed: which artefacts, with which bases, and what each contestant computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.bench import contestants
from pipeline.graphs import merge, variants
from pipeline.models import texts
from pipeline.runtime.tensorrt import TrtRunner
from pipeline.types import SkipSet, UserError, Variant
from tests import fake_tensorrt, toy_engines
from tests.fake_tensorrt import Machine
from tests.timing import graph
from tests.toy_engines import PLAN, STATIC_PLAN


@pytest.mark.parametrize("batch", [1, 3])
def test_decode_times_the_token_that_follows_the_cache(model: Path, batch: int) -> None:
    """Its logits are those of the whole prefill's last token, of the graph and of PyTorch."""
    tokens, _ = texts.sequences(graph(model, "base").parent, 6, 2 * batch)
    sequences = tokens.reshape(2, batch, 6)
    path = graph(model, "attn0")
    whole = contestants.of_artefact(path, 1, decode=False).start(sequences)(0)
    for one in (contestants.of_artefact(path, 1, decode=True), contestants.of_torch(path, 1, decode=True)):
        step = one.start(sequences)
        assert whole.shape == step(0).shape == (batch, 1, whole.shape[-1])
        np.testing.assert_allclose(step(0), whole, atol=1e-4)
        np.testing.assert_allclose(step(0), whole, atol=1e-4)  # the cache does not grow between runs
    prefill = contestants.of_torch(path, 1, decode=False).start(sequences)(0)
    np.testing.assert_allclose(prefill, whole, atol=1e-4)


def test_who_takes_part(model: Path) -> None:
    path = graph(model, "mlp2")
    everyone = contestants.line_up(
        [graph(model, "base"), path],
        compare=("torch", "optimum"),
        optimum_graphs={path: path},
        threads=1,
        decode=False,
    )
    assert [(one.name, one.kind) for one in everyone] == [
        ("base.fp32", "artefact"),
        ("mlp2.fp32", "artefact"),
        ("base.fp32 (torch)", "torch"),
        ("mlp2.fp32 (torch)", "torch"),
        ("mlp2.fp32 (optimum)", "optimum"),
    ]
    assert [one.path for one in everyone[1::2]] == [path, path] and everyone[-1].variant.skip.mlp == (2,)


def test_each_artefact_has_its_base_before_it_once(model: Path) -> None:
    base, mlp, attn = (graph(model, name) for name in ("base", "mlp2", "attn0"))
    assert contestants.with_bases([mlp, base, attn]) == [base, mlp, attn]
    assert contestants.with_bases([base]) == [base]


def test_a_merged_graph_beside_is_no_damaged_record(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is passed over in the search for a base, and nothing is made again."""
    merged = merge.merge([graph(model, "base"), graph(model, "mlp2")])
    base = graph(model, "base")
    hidden = base.rename(base.with_suffix(".gone"))
    try:
        with pytest.raises(UserError, match="a variant is measured beside its base"):
            contestants.base_of(graph(model, "mlp2"))
    finally:
        hidden.rename(base)
        merged.unlink()
        store.sidecar_path(merged).unlink()
    assert not caplog.records


def test_a_missing_base_of_an_engine_names_its_command(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        artefact = "engine"

    monkeypatch.setattr("pipeline.store.sidecar", lambda *_, **__: Engine())
    monkeypatch.setattr("pipeline.store.variant", lambda *_, **__: Variant("m", SkipSet((), (2,))))
    monkeypatch.setattr("pipeline.store.checkpoint_folder", lambda _: Path("graphs/m"))
    with pytest.raises(UserError, match=r"engines/m/base/x\.plan is missing.*pipeline build-engine"):
        contestants.base_of(Path("engines/m/mlp2/x.plan"))


@pytest.mark.parametrize("decode", [False, True])
def test_an_engine_with_a_static_cache_is_timed_in_one_block(
    decode: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of sequences; its logits are those of the usual engine."""
    cuda, tokens = fake_tensorrt.install(monkeypatch, Machine()).cuda, np.array([[[1, 2, 3]], [[4, 1, 2]]])
    blocks, logits = list[int](), list[list[np.ndarray]]()
    for plan, count in ((PLAN, 2), (STATIC_PLAN, 2), (STATIC_PLAN, 20)):
        runner = TrtRunner(toy_engines.write(tmp_path / "toy.plan", plan), plan)
        monkeypatch.setattr(opening, "open_runner", lambda *_, runner=runner: runner)
        step = contestants.of_artefact(graph(model, "base"), 1, decode).start(tokens[np.arange(count) % 2])
        logits.append([step(k) for k in (0, 1, 0)])
        blocks.append(len(cuda.blocks))
        runner.close()
        del step, runner
    np.testing.assert_array_equal(logits[0], logits[1])
    assert blocks[1] == blocks[2] and not np.array_equal(logits[0][0], logits[0][1])


def test_a_static_cache_is_not_timed(model: Path) -> None:
    base = graph(model, "base")
    with pytest.raises(UserError, match=r"static128\.onnx has a static cache, .* name its twin base\.fp32"):
        contestants.with_bases([variants.cut_static(base, 128)])
