"""What may be scored, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.evals import passed
from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.types import SkipSet, UserError
from tests import tiny


@pytest.fixture
def base(workdir: Path) -> Path:
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "m", vocab_size=tiny.WORDS))
    return export.export_base(checkpoint.resolve("models/m"))


def test_one_head_of_what_has_passed(base: Path) -> None:
    with pytest.raises(
        UserError, match=r"has passed no check; run `pipeline check graphs/m/base\.fp32\.onnx`, or"
    ):
        passed.variants(base)
    heads = {"": (base, store.sha256(base))}
    assert passed.variants(base, unchecked=True) == heads
    tiny.passed(base)
    assert passed.variants(base) == heads


def test_every_head_of_a_merged_graph_has_passed(base: Path) -> None:
    mlp = variants.cut(base, SkipSet.parse("mlp1"))
    merged = merge.merge([base, mlp])
    tiny.passed(base)
    with pytest.raises(UserError, match=r"mlp1\.fp32\.onnx has passed no check"):
        passed.variants(merged)
    tiny.passed(mlp)
    assert passed.variants(merged) == {
        "base": (base, store.sha256(base)),
        "mlp1": (mlp, store.sha256(mlp)),
    }


def test_a_variant_that_changed_after_the_merge_is_refused(base: Path) -> None:
    mlp = variants.cut(base, SkipSet.parse("mlp1"))
    merged = merge.merge([base, mlp])
    shutil.copy(base, mlp)
    fields = store.graph_sidecar(base).plain()
    store.write_sidecar(mlp, {**fields, "variant": "mlp1", "skip": {"attention": [], "mlp": [1]}})
    with pytest.raises(UserError, match=r"is not the graph that .* was merged from; run the command again"):
        passed.variants(merged, unchecked=True)


def test_the_tokenizer_must_be_the_one_of_the_export(base: Path) -> None:
    file = base.parent / "tokenizer.json"
    text = file.read_text()
    file.write_text(text.replace('"<pad>"', '"<pod>"'))
    with pytest.raises(UserError, match=r"is not the one that base\.fp32\.onnx was exported with"):
        passed.variants(base, unchecked=True)
    for path in base.parent.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match="graphs/m holds no tokenizer"):
        passed.variants(base, unchecked=True)


def test_without_any_attention_no_past_matters(base: Path) -> None:
    none = variants.cut(base, SkipSet.parse("attn0-1"))
    some = variants.cut(base, SkipSet.parse("attn0"))
    assert passed.has_no_attention(none) and not passed.has_no_attention(some)
    assert not passed.has_no_attention(merge.merge([base, none]))


def test_the_answers_name_depends_on_artefact_and_protocol(base: Path) -> None:
    path = passed.journal_path(base, "a" * 64, "lm-eval")
    assert path.parent == Path("evals/results/m") and path.suffix == ".jsonl"
    assert path.name.startswith("base.fp32.answers-")
    others = {passed.journal_path(base, "b" * 64, "lm-eval"), passed.journal_path(base, "a" * 64, "v1")}
    assert len(others | {path}) == 3


def test_a_graph_without_a_cache_cannot_generate() -> None:
    assert "has no cache to generate with" in str(passed.no_cache(Path("x.onnx")))


def test_a_name_with_spaces_is_quoted_in_the_command(workdir: Path) -> None:
    path = workdir / "graphs" / "my model é" / "base.fp32.onnx"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    with pytest.raises(UserError) as error:
        passed.require_check(path)
    assert f"`pipeline check '{path}'`" in str(error.value)


def test_a_check_on_the_cpu_is_none_on_cuda_and_the_other_way_round(base: Path) -> None:
    tiny.passed(base)
    passed.require_check(base)
    passed.require_check(base, provider=None)
    with pytest.raises(UserError, match=r"no check on cuda; run `pipeline check .*onnx --provider cuda`, or"):
        passed.variants(base, provider="cuda")
    store.result_of(base, "check").rename(store.result_of(base, "check", "cuda"))
    passed.require_check(base, provider="cuda")
    passed.require_check(base, provider=None)
    with pytest.raises(UserError, match=r"no check on cpu; run `pipeline check .*onnx --provider cpu`, or"):
        passed.variants(base)


def test_answers_on_cuda_are_others(base: Path) -> None:
    names = {passed.journal_path(base, "a" * 64, "lm-eval", provider).name for provider in ("cpu", "cuda")}
    assert len(names) == 2 and all(name.endswith(".jsonl") for name in names)


def test_a_static_cache_is_not_scored_or_shipped(base: Path) -> None:
    static = variants.cut_static(base, 128)
    with pytest.raises(UserError, match=r"static128\.onnx has a static cache, .* twin base\.fp32\.onnx, or"):
        passed.variants(static, unchecked=True)
    passed.refuse_static(base)
