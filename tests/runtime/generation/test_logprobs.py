"""Log-probabilities of written tokens: their values, and that they line up with the text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.runtime.generation.logprobs import WrittenToken, likeliest, log_softmax
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.spelling import Spelling
from pipeline.runtime.generation.writer import Piece, Writer
from pipeline.types import UserError
from tests import tiny
from tests.prompting import changed, words_of_bytes

ENDED = "<|eot_id|>"


@pytest.fixture(scope="module")
def special(prompts: Prompts) -> Prompts:
    """The tokenizer with a special token that does not end a text."""
    words = Tokenizer.from_str(prompts.tokenizer.to_str())
    words.add_special_tokens([ENDED, "<|im_end|>"])
    return Prompts(words, prompts.conventions)


def written(
    prompts: Prompts, tokens: list[int], stop: tuple[str, ...] = (), before: str = "a", count: int = 2
) -> list[Piece]:
    """The pieces of a text of these tokens."""
    pieces = list[Piece]()
    sampling = Sampling(len(tokens), stop=stop, ignore_eos=True, logprobs=count)
    writer = Writer(prompts.encode(before), sampling, prompts, pieces.append)
    width = prompts.tokenizer.get_vocab_size()
    for token in tokens:
        if writer.take(np.eye(width)[token]) is None:
            break
    return pieces


def joined(tokens: list[WrittenToken]) -> bytes:
    return b"".join(token.chosen.bytes or b"" for token in tokens)


def lines_up(pieces: list[Piece], is_stopped: bool) -> None:
    """Tokens come with their text or after it; in the end all of it has tokens, and none is left over."""
    text, tokens = "", list[WrittenToken]()
    for piece in pieces:
        text, tokens = text + piece.text, [*tokens, *piece.logprobs]
        if not piece.finish:
            assert text.encode().startswith(joined(tokens))
    if is_stopped:  # the stop string may begin within the last token
        assert joined(tokens).startswith(text.encode())
        assert len(joined(tokens[:-1])) < len(text.encode()) or joined(tokens) == text.encode()
    else:
        assert joined(tokens) == text.encode() and len(tokens) == len(pieces)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, tiny.WORDS - 1), min_size=1, max_size=60), st.text(max_size=40))
def test_bytes_of_the_tokens_are_the_text(special: Prompts, tokens: list[int], text: str) -> None:
    """Of tokens at random, halves of characters and special tokens among them; and of whole texts."""
    marks = [special.tokenizer.token_to_id(ENDED)]
    smile = special.tokenizer.encode("😀", add_special_tokens=False).ids
    whole = special.tokenizer.encode(text + "é😀").ids
    for chosen in (tokens, whole, tokens + smile[:-1], smile[:1] + marks + smile[1:] + tokens, marks + whole):
        lines_up(written(special, chosen), is_stopped=False)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["an ", "exception", ENDED, "<|im_end|>", "e", " here", "é", "😀"]), min_size=1),
    st.lists(
        st.sampled_from([ENDED, "e" + ENDED, "exc", ENDED + "<", "e e", "nh", "\ufffd", "é", "xcep"]),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_tokens_of_a_stop_string_are_left_out(special: Prompts, parts: list[str], stop: list[str]) -> None:
    ids = special.tokenizer.encode("".join(parts), add_special_tokens=False).ids
    pieces = written(special, ids, tuple(stop))
    lines_up(pieces, is_stopped=pieces[-1].finish == "stop")


def test_a_stop_string_that_begins_within_a_token(special: Prompts) -> None:
    words = special.tokenizer
    ids = words.encode("so😀exception here", add_special_tokens=False).ids
    pieces = written(special, ids, ("ption h",))
    tokens = [token for piece in pieces for token in piece.logprobs]
    assert "".join(piece.text for piece in pieces) == "so😀exce"
    assert joined(tokens).startswith("so😀exce".encode()) and b"here" not in joined(tokens)


def test_halves_of_a_character_have_their_own_bytes(prompts: Prompts) -> None:
    ids = prompts.tokenizer.encode("😀", add_special_tokens=False).ids
    assert len(ids) > 1
    tokens = [token for piece in written(prompts, ids) for token in piece.logprobs]
    assert joined(tokens) == "😀".encode() and all(token.chosen.bytes for token in tokens)
    assert tokens[0].chosen.token.startswith("\\xf0") and tokens[0].likeliest[0] == tokens[0].chosen


def test_special_tokens_have_a_name_and_no_bytes(special: Prompts) -> None:
    mark = special.tokenizer.token_to_id(ENDED)
    (token, after) = (t for p in written(special, [mark, 40]) for t in p.logprobs)
    assert (token.chosen.token, token.chosen.bytes) == (ENDED, None) and after.chosen.bytes


def test_the_token_that_ends_a_text_is_left_out(prompts: Prompts) -> None:
    ending, pieces = changed(prompts, ends=(2,)), list[Piece]()
    writer = Writer([5], Sampling(9, logprobs=0), ending, pieces.append)
    for token in (40, 2):
        writer.take(np.eye(tiny.WORDS)[token])
    assert [len(piece.logprobs) for piece in pieces] == [1, 0] and pieces[-1].finish == "stop"


def test_words_of_bytes(prompts: Prompts) -> None:
    """In Llama 2's form: a byte is a word, and a space begins a word."""
    llama = words_of_bytes(prompts)
    pieces = written(llama, [*llama.encode("\n😀"), 258, 0xE2 + 1, 258])
    lines_up(pieces, is_stopped=False)
    tokens = [token.chosen for piece in pieces for token in piece.logprobs]
    assert [token.bytes for token in tokens[:5]] == [b"\n", b"\xf0", b"\x9f", b"\x98", b"\x80"]
    assert tokens[5].token == " so" and [t.token for t in tokens[6:]] == ["", "\ufffd so"]
    assert Spelling(llama.tokenizer).raw(0xE2 + 1) == b"\xe2" and Spelling(llama.tokenizer).raw(258) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3, "repetition_penalty": 1.5}])
def test_values_are_those_of_the_raw_logits(prompts: Prompts, dtype: type, options: dict[str, float]) -> None:
    """Whatever draws the token: log-softmax in float64, as PyTorch computes it."""
    random, pieces = np.random.default_rng(1), list[Piece]()
    sampling = Sampling(5, logprobs=4, seed=3, presence_penalty=1, **options)
    writer = Writer([5, 6], sampling, prompts, pieces.append)
    for _ in range(5):
        logits = (random.normal(size=tiny.WORDS) * 9).astype(dtype)
        kept = logits.copy()
        writer.take(logits)
        assert (logits == kept).all()
        truth = torch.log_softmax(torch.tensor(logits.astype(np.float64)), 0)
        assert log_softmax(logits) == pytest.approx(truth.numpy(), abs=1e-9)
        picked, values = pieces[-1].token, truth.topk(4).values
        token = writer.logprobs and (pieces[-1].logprobs or writer.logprobs.group)[-1]
        assert token and token.chosen.logprob == pytest.approx(float(truth[picked]), abs=1e-9)
        assert [one.logprob for one in token.likeliest] == pytest.approx(values.tolist(), abs=1e-9)


def test_likeliest_are_in_order_and_ties_by_id() -> None:
    values = np.array([0.5, 2, 1, 2, -1, 1], np.float64)
    assert likeliest(values, 3) == [1, 3, 2] and likeliest(values, 0) == []
    assert likeliest(values, 99) == [1, 3, 2, 5, 0, 4]


@pytest.mark.parametrize("count", [-1, 21])
def test_counts_beyond_the_limit_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"logprobs {count} is not between 0 and 20"):
        Sampling(logprobs=count)


def test_none_are_kept_where_none_are_wanted(prompts: Prompts) -> None:
    pieces = list[Piece]()
    writer = Writer([5], Sampling(1), prompts, pieces.append)
    writer.take(np.eye(tiny.WORDS)[40])
    assert writer.logprobs is None and pieces[0].logprobs == ()
