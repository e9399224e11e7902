"""The surgery: two ways to one graph, only what is skipped gone, and the numbers of PyTorch without it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import architectures, export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.models.sizes import rules_of
from pipeline.store.records import FileDigest
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny

SETS = [SkipSet(attention, mlp) for attention, mlp in itertools.product([(), (0,), (1,), (0, 1)], repeat=2)]


def fingerprint(model: ir.Model) -> dict[str, object]:
    """Everything of a graph but the order of its initializers."""
    name = lambda v: v.name if v is not None else None  # noqa: E731
    return {
        "nodes": [
            (
                n.name,
                n.op_type,
                tuple(map(name, n.inputs)),
                tuple(map(name, n.outputs)),
                {k: str(a.value) for k, a in n.attributes.items()},
            )
            for n in model.graph
        ],
        "inputs": [(v.name, str(v.type), str(v.shape)) for v in model.graph.inputs],
        "outputs": [(v.name, str(v.type), str(v.shape)) for v in model.graph.outputs],
        "weights": {
            n: (str(v.const_value.dtype), str(v.const_value.shape))
            for n, v in model.graph.initializers.items()
        },
    }


def compare_with_torch(path: Path, folder: Path, chosen: SkipSet, limit: float, layers: int) -> None:
    """Prefill and three decode steps of a left-padded batch against the reference's one pass."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, 96, (2, 12)), np.ones((2, 12), np.int64)
    mask[0, :4] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    expected, kept = Reference(folder, chosen, "fp32").forward(ids, mask, positions)
    scale = np.abs(expected).max()
    with opening.open_runner(path) as runner:
        names = {
            f"past_key_values.{i}.{x}"
            for i in range(layers)
            if i not in chosen.attention
            for x in ("key", "value")
        }
        assert (
            set(runner.inputs) == {"input_ids", "attention_mask", "position_ids", "logits_positions"} | names
        )
        logits, cache = runner.forward(ids[:, :9], attention_mask=mask[:, :9])
        for t in range(9, 13):
            assert np.abs(logits[:, 0] - expected[:, t - 1]).max() <= limit * scale
            if t < 12:
                logits, cache = runner.forward(ids[:, t : t + 1], cache, attention_mask=mask[:, : t + 1])
        assert set(cache.arrays()) == names and set(kept) == {int(n.split(".")[1]) for n in names}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_all_sixteen_skip_sets_of_two_layers(precision: str, workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", "llama", precision)))
    base = export.export_base(base_model, precision)
    for chosen in SETS:
        path = variants.cut(base, chosen)
        assert path.name == f"{chosen.name}.{precision}.onnx"
        compare_with_torch(path, base_model.folder, chosen, 1e-5 if precision == "fp32" else 1e-2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", tiny.DIALECTS)
def test_random_skip_sets_of_every_architecture(model_type: str, workdir: Path) -> None:
    layers = {"llama": 6, "phi": 5}.get(model_type, 4)
    folder = tiny.checkpoint(workdir / "tiny", model_type, num_hidden_layers=layers)
    base_model = checkpoint.resolve(str(folder))
    base = export.export_base(base_model)
    some = st.sets(st.integers(0, layers - 1)).map(lambda s: tuple(sorted(s)))

    @settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(attention=some, mlp=some)
    def run(attention: tuple[int, ...], mlp: tuple[int, ...]) -> None:
        chosen = SkipSet(attention, mlp)
        path = variants.cut(base, chosen)
        compare_with_torch(path, base_model.folder, chosen, 1e-5, layers)
        # Two roads, one result: cut out of base, and authored without the sublayers.
        authored = architectures.decoder(base_model, "fp32", chosen).author()
        assert fingerprint(graphfile.load(path)) == fingerprint(ir.from_proto(ir.to_proto(authored)))

    run()


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("name", ["attn1", "mlp2", "block0_3", "attn0-3", "block0-3", "attn0+mlp3"])
def test_only_the_skipped_things_are_gone(model_type: str, name: str, workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", model_type, num_hidden_layers=4)))
    base, chosen = export.export_base(base_model), SkipSet.parse(name)
    whole, part = fingerprint(graphfile.load(base)), fingerprint(graphfile.load(variants.cut(base, chosen)))

    rules = rules_of(model_type)

    def skipped(weight: str) -> bool:
        """Whether a tensor belongs to a skipped sublayer; phi's one norm goes when both of its readers do."""
        for i, kind in itertools.product(range(4), ("attn", "mlp")):
            modules = {"attn": ("self_attn", "attention", "attn"), "mlp": ("mlp",)}[kind]
            norms = {"attn": rules.attention_norms, "mlp": rules.mlp_norms}[kind]
            if rules.shared_norm and not ((i, "attn") in chosen and (i, "mlp") in chosen):
                norms = (None, None)
            if (i, kind) in chosen and any(
                weight.startswith(f"{rules.layers}.{i}.{part}.") for part in (*modules, *norms)
            ):
                return True
        return False

    assert {w for w in whole["weights"] if w in base_model.tensors} - set(part["weights"]) == {
        w for w in base_model.tensors if skipped(w)
    }
    kept = {n[0]: n for n in part["nodes"]}
    for node in whole["nodes"]:
        if node[0] in kept:
            same = kept[node[0]]
            assert (node[1], len(node[2]), node[3], node[4]) == (same[1], len(same[2]), same[3], same[4])
    gone = Counter(n[0].split("/")[1] for n in whole["nodes"] if n[0] not in kept)
    allowed = {f"layers.{i}" for i in chosen.attention + chosen.mlp} | (
        {"mask", "rope", "rope_local"} if len(chosen.attention) == 4 else set()
    )
    assert set(gone) <= allowed
    gone_cache = {v[0] for v in whole["inputs"]} - {v[0] for v in part["inputs"]}
    assert gone_cache == {f"past_key_values.{i}.{x}" for i in chosen.attention for x in ("key", "value")}


def test_cut_again_does_nothing_and_base_is_untouched(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    before = base.read_bytes()
    path = variants.cut(base, SkipSet.parse("mlp1"))
    stamp = path.stat().st_mtime_ns
    assert variants.cut(base, SkipSet.parse("mlp1")) == path and path.stat().st_mtime_ns == stamp
    assert base.read_bytes() == before and variants.cut(base, BASE) == base
    path.write_bytes(b"broken")  # a graph that its sidecar disowns is made again
    assert variants.cut(base, SkipSet.parse("mlp1")) == path and graphfile.load(path)


def test_what_is_no_base_is_refused(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    with pytest.raises(UserError, match=r"not a base graph; cut variants from .*base.fp32.onnx"):
        variants.cut(variants.cut(base, SkipSet.parse("mlp1")), SkipSet.parse("attn1"))
    with pytest.raises(UserError, match=r"layer 7 does not exist: the model has layers 0-1"):
        variants.cut(base, SkipSet.parse("mlp7"))


def test_all_logits_twin(workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny")))
    graph = variants.cut(export.export_base(base_model), SkipSet.parse("attn0"))
    twin = variants.cut_all_logits(graph)
    ids = np.array([[5, 6, 7, 8]])
    with opening.open_runner(graph) as one, opening.open_runner(twin) as every:
        assert every.outputs["logits"].shape == ("batch", "sequence", 96)
        logits = every.infer(every.feeds(ids))["logits"]
        wanted, _ = one.forward(ids, logits_positions=np.array([[0, 1, 2, 3]]))
        np.testing.assert_array_equal(logits, wanted)
    assert store.graph_sidecar(twin).head == "all"


def test_refusals_reach_the_user_as_one_line(workdir: Path) -> None:
    """onnx-ir wraps what a pass's conditions raise; the user sees our line, and no variant is left."""
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    model, record = graphfile.load(base), store.graph_sidecar(base)
    next(
        n for n in model.graph if n.op_type == "Attention" and "layers.1" in (n.name or "")
    ).op_type = "Mystery"
    graphfile.save(model, base, record.plain())
    with pytest.raises(UserError, match=r"layer 1: node '/layers.1/attention/.*' joins the stream as mlp"):
        variants.cut(base, SkipSet.parse("mlp0"))
    assert not list(base.parent.glob("mlp0*"))


def test_a_variant_is_cut_in_the_project_of_its_base(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = workdir / export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "my model é"))))
    elsewhere = workdir / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = variants.cut(base, SkipSet.parse("mlp1"))
    record = store.graph_sidecar(path)
    assert path == base.with_name("mlp1.fp32.onnx") and record.model == "my model é"
    assert record.base == FileDigest(file=base.name, sha256=store.sha256(base))
    assert record.skip_set == SkipSet((), (1,)) and record.source == store.graph_sidecar(base).source
    assert variants.cut_all_logits(path).parent == base.parent and not any(elsewhere.iterdir())


def test_the_twin_with_a_static_cache(workdir: Path) -> None:
    base = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    mlp = variants.cut(base, SkipSet.of("mlp", (0,)))
    twin, whole = variants.cut_static(mlp, 200), variants.cut_static(variants.cut_all_logits(base), 128)
    assert twin.name == "mlp0.fp32.static200.onnx" and whole.name == "base.fp32.all.static128.onnx"
    record = store.graph_sidecar(twin)
    assert record.max_tokens == 200 and record.base == FileDigest(file=mlp.name, sha256=store.sha256(mlp))
    assert record.as_variant().name == "mlp0" and store.graph_sidecar(mlp).max_tokens is None
    stamp = twin.stat().st_mtime_ns
    assert variants.cut_static(mlp, 200) == twin and twin.stat().st_mtime_ns == stamp
    assert store.graphs_of("tiny") == [base, mlp]
    static, mlp0 = variants.cut_static(base, 200), SkipSet.of("mlp", (0,))
    refusals: dict[str, Callable[[], object]] = {
        "has a static cache of 200 tokens; name a graph": lambda: variants.cut_static(twin, 150),
        "has a static cache of 200 tokens; name the variant": lambda: variants.base_of(twin),
        "has a static cache of 200 tokens; cut variants from": lambda: variants.cut(static, mlp0),
        "--max-tokens 127 is not between 128 and": lambda: variants.cut_static(base, 127),
        "the model's context of 256 tokens": lambda: variants.cut_static(base, 257),
    }
    for message, action in refusals.items():
        with pytest.raises(UserError, match=re.escape(message)):
            action()
