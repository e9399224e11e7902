"""Our model under lm-eval beside lm-eval's own `hf` backend, on a tiny random model: the corner cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline import store
from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.loglikelihoods import ScoringError
from pipeline.evals.score.settings import ModelSettings
from pipeline.graphs import export, merge, variants
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.types import SkipSet, UserError
from tests import parity, tiny
from tests.scoring import instances

WINDOW = 48
PAIRS = {
    "plain": ("The grass of the field is", " green"),
    "another choice of it": ("The grass of the field is", " blue and tall"),
    "equal choices": ("The grass of the field is", " green"),
    "a choice that another one begins with": ("The grass of the field is", " blue"),
    "empty context": ("", "Once upon a time"),
    "empty context, prefix token first": ("", "<s>Once"),
    "trailing spaces move": ("Answer:  ", "yes"),
    "tokens change at the boundary": ("the interp", "reter runs"),
    "one token": ("Answer:", " a"),
    "unicode": ("Größe: 数学 🎉", " ünïcödé 名前"),
    "combining": ("e\u0301", "\u0301\u0301"),
    "longer than the window": ("The quick brown fox jumps over the lazy dog. " * 9, " and away"),
    "longer than the window, another end": (
        "The quick brown fox jumps over the lazy dog. " * 9,
        " and then it sleeps",
    ),
    "begins with the BOS": ("<s>The grass", " grows"),
    "newlines": ("Question: why?\nAnswer:", "\n\n no"),
}


def base_graph(root: Path, bos: bool) -> Path:
    """A base graph of a tiny model with a tokenizer, in a window of 48 tokens."""
    folder = root / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, max_position_embeddings=WINDOW)
    tiny.tokenizer(folder, bos)
    return export.export_base(checkpoint.resolve(str(folder)))


@pytest.fixture(params=[False, True], ids=["no-bos", "bos"])
def graph(request: pytest.FixtureRequest, workdir: Path) -> Path:
    return base_graph(workdir, request.param)


@pytest.fixture
def plain(workdir: Path) -> Path:
    return base_graph(workdir, False)


def model(path: Path, **options: Any) -> PipelineLM:
    return PipelineLM(path, unchecked=True, **options)


def test_loglikelihoods_are_the_hf_backends(graph: Path) -> None:
    reference = parity.hf(graph.parent)
    expected = reference.loglikelihood(instances("loglikelihood", list(PAIRS.values())), disable_tqdm=True)
    for options in (
        {},
        {"batch_tokens": 16, "memory_mb": 0, "journal": False},
        {"reuse": False, "journal": False},
    ):
        answers = model(graph, **options).loglikelihood(instances("loglikelihood", list(PAIRS.values())))
        for name, answer, other in zip(PAIRS, answers, expected, strict=True):
            assert answer[0] == pytest.approx(other[0], rel=1e-4), name
            assert answer[1] == other[1], name
    assert reference.max_length == WINDOW and model(graph).prefix_token_id == reference.prefix_token_id


def test_order_and_company_do_not_matter(plain: Path) -> None:
    pairs = list(PAIRS.values())
    together = model(plain).loglikelihood(instances("loglikelihood", pairs))
    turned = model(plain, journal=False).loglikelihood(instances("loglikelihood", pairs[::-1]))[::-1]
    alone = [
        model(plain, journal=False).loglikelihood(instances("loglikelihood", [pair]))[0] for pair in pairs
    ]
    for one in (turned, alone):
        np.testing.assert_allclose([a[0] for a in one], [a[0] for a in together], rtol=1e-4)


def test_rolling_is_the_hf_backends(graph: Path) -> None:
    texts = [("The grass of the field is green. " * 12,), ("short",), ("数学 " * 30,)]
    expected = [
        parity.hf(graph.parent).loglikelihood_rolling([i], disable_tqdm=True)[0]
        for i in instances("loglikelihood_rolling", texts)
    ]
    ours = model(graph, batch_tokens=20)
    assert ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts)) == pytest.approx(
        expected, rel=1e-4
    )
    counts = [count for _, count in ours.rolling(instances("loglikelihood_rolling", texts))]
    assert counts == [len(ours.tok_encode(text)) for (text,) in texts]


def test_texts_are_the_hf_backends(graph: Path) -> None:
    settings = {"until": ["e", "\n\n"], "max_gen_toks": 12, "do_sample": False}
    prompts = ["The grass", "", "Question: why is the sky blue? " * 9, "数学"]
    questions: list[tuple[Any, ...]] = [(p or "a", dict(settings)) for p in prompts]
    questions += [("The grass", {"until": [], "max_gen_toks": 6, "do_sample": False})]
    expected = [
        parity.hf(graph.parent).generate_until([i], disable_tqdm=True)[0]
        for i in instances("generate_until", questions)
    ]
    assert model(graph).generate_until(instances("generate_until", questions)) == expected
    with pytest.raises(UserError, match="samples"):
        model(graph).generate_until(
            instances("generate_until", [("a", {"until": [], "do_sample": True, "temperature": 1.0})])
        )
    with pytest.raises(UserError, match="window"):
        model(graph).generate_until(
            instances("generate_until", [("a", {"until": [], "max_gen_toks": WINDOW})])
        )


def test_protocols_do_not_share_answers(workdir: Path) -> None:
    path = base_graph(workdir, bos=True)
    now, v1 = model(path), model(path, protocol="v1")
    pair = instances("loglikelihood", [PAIRS["plain"]])
    assert v1.loglikelihood(pair) != now.loglikelihood(pair)
    with pytest.raises(UserError, match="choose from lm-eval, v1"):
        model(path, protocol="v0")


def test_documents_that_fail_are_named_and_the_others_kept(plain: Path) -> None:
    pairs = [PAIRS["plain"], ("The grass", ""), ("The grass", "word " * 60), PAIRS["one token"]]
    with pytest.raises(
        ScoringError,
        match=r"2 documents could not be scored: corner 1: .*no token; corner 2: .*window holds 48",
    ):
        model(plain).loglikelihood(instances("loglikelihood", pairs))
    again = model(plain)
    assert len(again.loglikelihood(instances("loglikelihood", [pairs[0], pairs[3]]))) == 2
    assert again.work.passes == 0  # both come from the journal


def test_a_runner_that_fails_loses_its_own_documents_only(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model(plain)
    step = lm.runner.step

    def fragile(one: Any, *rest: Any) -> Any:
        if 7 in one.feeds["input_ids"]:
            raise RuntimeError("out of memory")
        logits, cache = step(one, *rest)
        if 9 in one.feeds["input_ids"]:
            logits[""][:] = np.nan
        return logits, cache

    monkeypatch.setattr(lm.runner, "step", fragile)
    texts = [("the word is", f" {c}{c}") for c in "abcdefghijklmnop!#$%&'()*+,-./"]
    encoded = lm.encode_pairs(texts)
    bad = {
        k for k, (context, continuation) in enumerate(encoded) if {7, 9} & set([*context, *continuation][:-1])
    }
    assert 0 < len(bad) < len(texts)
    with pytest.raises(ScoringError, match=f"{len(bad)} documents"):
        lm.loglikelihood(instances("loglikelihood", texts))
    assert len(next(iter(lm.journals.values())).answers) == len(texts) - len(bad)


def test_merged_answers_are_each_variants_own(plain: Path) -> None:
    graphs = [plain, *(variants.cut(plain, SkipSet.parse(name)) for name in ("attn2", "mlp1", "block1-2"))]
    merged = model(merge.merge(graphs), batch_tokens=32)
    merged.loglikelihood(instances("loglikelihood", list(PAIRS.values())))
    merged.rolling(instances("loglikelihood_rolling", [("The grass of the field is green. " * 5,)]))
    merged.close()
    for path in graphs:
        kept, own = model(path), model(path, journal=False)
        answers = kept.loglikelihood(instances("loglikelihood", list(PAIRS.values())))
        assert kept.work.passes == 0
        np.testing.assert_allclose(
            [a[0] for a in answers],
            [a[0] for a in own.loglikelihood(instances("loglikelihood", list(PAIRS.values())))],
            rtol=1e-4,
        )


def test_another_models_tokenizer_is_refused(plain: Path) -> None:
    tiny.tokenizer(plain.parent, bos=True)
    with pytest.raises(UserError, match=r"not the one that base\.fp32\.onnx was exported with"):
        model(plain)
    export.export_base(checkpoint.open_checkpoint(plain.parent))  # the user says: it was mended
    model(plain)


def test_what_has_passed_no_check_is_refused(plain: Path) -> None:
    with pytest.raises(UserError, match="run `pipeline check"):
        PipelineLM(plain)
    tiny.passed(plain)
    assert PipelineLM(plain).settings == ModelSettings()


def test_a_variant_without_attention_is_scored_without_a_cache(plain: Path) -> None:
    path = variants.cut(plain, SkipSet.parse("attn0-2"))
    pairs = list(PAIRS.values())
    answers = model(path).loglikelihood(instances("loglikelihood", pairs))
    whole = model(path, journal=False, reuse=False).loglikelihood(instances("loglikelihood", pairs))
    np.testing.assert_allclose([a[0] for a in answers], [a[0] for a in whole], rtol=1e-5)


def overflowing(lm: PipelineLM, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the logits behind a token be NaN, as where a number in the model overflows."""
    step = lm.runner.step

    def spoilt(one: Any, *rest: Any) -> Any:
        logits, cache = step(one, *rest)
        logits[""][(one.feeds["input_ids"] == token).any(axis=1)] = np.nan
        return logits, cache

    monkeypatch.setattr(lm.runner, "step", spoilt)


def test_a_text_of_logits_that_are_no_numbers_is_no_answer(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gsm8k was 0.00 ± 0.00 on a graph that overflows. Its document is named, the others are kept."""
    settings = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    prompts = ["The grass", "a {brace", "Once upon"]
    lm = model(plain)
    (token,) = set(lm.tok_encode("{"))
    questions = instances("generate_until", [(prompt, dict(settings)) for prompt in prompts])
    with monkeypatch.context() as patch:
        overflowing(lm, token, patch)
        with pytest.raises(ScoringError, match=r"1 documents could not .*: corner 1: .*not finite.*float16"):
            lm.generate_until(questions)
    assert len(model(plain).journals[""].answers) == 2
    fresh = model(plain, journal=False).generate_until(questions)
    assert model(plain).generate_until(questions) == fresh


def test_log_likelihoods_of_logits_that_are_no_numbers_are_none(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model(plain)
    (token,) = set(lm.tok_encode("{"))
    overflowing(lm, token, monkeypatch)
    pairs = instances("loglikelihood", [("The grass", " is"), ("a {brace", " is"), ("Once", " upon")])
    with pytest.raises(ScoringError, match=r"1 documents .* corner 1: .*not finite"):
        lm.loglikelihood(pairs)
    texts = instances("loglikelihood_rolling", [("The grass is",), ("a {brace is",)])
    with pytest.raises(ScoringError, match=r"1 documents .* corner 1: .*not finite"):
        lm.rolling(texts)


def test_tokens_beyond_the_embedding_fail_their_own_documents(workdir: Path) -> None:
    """A tokenizer with tokens that were added after the model was saved."""
    folder = workdir / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=2, max_position_embeddings=WINDOW)
    tiny.tokenizer(folder)
    pairs = [
        ("The grass", " is"),
        ("hello <|im_start|>", " you"),
        ("hello", " <|im_start|>"),
        ("", "<|im_start|> a"),
    ]
    settings = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    plain_model = model(export.export_base(checkpoint.resolve(str(folder))), journal=False)
    good = plain_model.loglikelihood(instances("loglikelihood", pairs[:1]))
    text = plain_model.generate_until(instances("generate_until", [("The grass", settings)]))
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.save_pretrained(folder)
    lm = model(export.export_base(checkpoint.open_checkpoint(folder)))
    with pytest.raises(
        ScoringError, match=r"3 documents .*corner 1: it holds token 300, and the model knows 300"
    ):
        lm.loglikelihood(instances("loglikelihood", pairs))
    assert lm.loglikelihood(instances("loglikelihood", pairs[:1])) == good
    questions = [("hello <|im_start|> you", settings), ("The grass", settings)]
    with pytest.raises(ScoringError, match=r"1 documents .*corner 0: .*token 300.*no row"):
        lm.generate_until(instances("generate_until", questions))
    assert lm.generate_until(instances("generate_until", questions[1:])) == text
    with pytest.raises(ScoringError, match=r"1 documents .*corner 0: it holds token 300"):
        lm.rolling(instances("loglikelihood_rolling", [("a <|im_start|>",), ("The grass",)]))


def test_texts_that_are_no_unicode_fail_their_own_documents(plain: Path) -> None:
    """Half a surrogate pair is legal in JSON, and no tokenizer takes it."""
    lm, settings = model(plain), {"until": [], "max_gen_toks": 3, "do_sample": False}
    pairs = [("The grass", " is"), ("a \ud83d", " b"), ("a", " \ude00"), ("Once", " upon")]
    with pytest.raises(ScoringError, match=r"2 documents .*: corner 1, corner 2: its text is no Unicode"):
        lm.loglikelihood(instances("loglikelihood", pairs))
    assert len(lm.journals[""].answers) == 2
    with pytest.raises(ScoringError, match=r"1 documents .*corner 0: its text is no Unicode"):
        lm.rolling(instances("loglikelihood_rolling", [("a \ud83d",), ("The grass",)]))
    with pytest.raises(ScoringError, match=r"1 documents .*corner 1: its text is no Unicode"):
        lm.generate_until(instances("generate_until", [("a", settings), ("\ud83d", settings)]))
    assert len(lm.journals[""].answers) == 4


def test_an_empty_prompt_is_answered_in_its_place(graph: Path) -> None:
    """With a BOS as the `hf` backend does; without one, where that raises, from the prefix token."""
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    prompts = ["The grass is green", "", "a"]
    ours = model(graph)
    answers = ours.generate_until(instances("generate_until", [(text, dict(settings)) for text in prompts]))
    alone = [
        model(graph, journal=False).generate_until(instances("generate_until", [(text, dict(settings))]))[0]
        for text in prompts
    ]
    assert answers == alone
    reference = Reference(graph.parent)
    assert ours.tok_encode("") in ([], [ours.prefix_token_id])
    written = reference.generate([ours.prefix_token_id], 6)
    ends = [place for place, token in enumerate(written) if token == 2]
    assert answers[1] == ours.tok_decode(written[: ends[0]] if ends else written)
    if ours.tok_encode(""):
        theirs = parity.hf(graph.parent)
        asked = instances("generate_until", [(text, dict(settings)) for text in prompts])
        assert theirs.generate_until(asked, disable_tqdm=True) == answers


def test_work_is_of_this_run_and_those_before_it(plain: Path) -> None:
    pairs = instances("loglikelihood", list(PAIRS.values()))
    whole = model(plain, journal=False)
    whole.loglikelihood(pairs)
    first = model(plain)
    first.loglikelihood(pairs[:5])
    second = model(plain)
    second.loglikelihood(pairs)
    assert second.work.asked < whole.work.asked == second.work_of_asked().asked
    assert second.work_of_asked().tokens == pytest.approx(first.work.tokens + second.work.tokens, abs=1e-3)
    third = model(plain)
    third.loglikelihood(pairs)
    assert third.work.passes == 0 and third.work_of_asked().counts() == second.work_of_asked().counts()
    questions = instances("generate_until", [("a", {"until": [], "max_gen_toks": 5, "do_sample": False})])
    third.asked.clear()
    third.generate_until(questions)
    assert third.work_of_asked().tokens == third.work.tokens > 0 and third.work_of_asked().seconds > 0


def test_misspelt_arguments_are_refused_in_one_line(plain: Path) -> None:
    for line, message in (
        (f"artefact={plain},unchekced=True", "did you mean unchecked?"),
        (f"artifact={plain}", "did you mean artefact?"),
        (f"pretrained={plain}", "has no 'pretrained'; it takes artefact"),
        ("unchecked=True", "names no artefact"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            PipelineLM.create_from_arg_string(line, {"batch_size": 1, "device": "cpu"})
        assert "\n" not in str(caught.value)
    settings = {"until": [], "max_gen_tok": 6, "do_sample": False}
    with pytest.raises(UserError, match=r"did you mean max_gen_toks\?"):
        model(plain).generate_until(instances("generate_until", [("a", settings)]))


def test_lm_evals_own_options_are_ignored_and_settings_taken(plain: Path) -> None:
    lm = PipelineLM.create_from_arg_string(
        f"artefact={plain},unchecked=True,threads=1", {"batch_size": 1, "device": "cpu"}
    )
    assert isinstance(lm, PipelineLM)
    assert lm.settings == ModelSettings(unchecked=True, threads=1) and lm.work.passes == 0
    assert lm.get_model_info()["sha256"] == {"": store.sha256(plain)} and lm.tokenizer_name == "tiny"


def test_everything_is_kept_in_the_artefacts_own_project(
    plain: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = plain.resolve()
    monkeypatch.chdir("/usr")
    lm = model(graph)
    lm.loglikelihood(instances("loglikelihood", [PAIRS["plain"]]))
    lm.close()
    assert len(list((workdir / "evals" / "results" / "tiny").glob("base.fp32.answers-*.jsonl"))) == 1
    assert len(list((workdir / "evals" / "cache" / "tiny").glob("*.npz"))) == 1
