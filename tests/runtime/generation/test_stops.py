"""What is kept back, and what is certain: one character at a time is as good as the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.generation.stops import StopSearch, special_tokens

PARTS = st.lists(st.tuples(st.text("abc", max_size=3), st.booleans()), max_size=8)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(PARTS, STOPS)
def test_text_comes_out_up_to_the_first_stop_string(parts: list[tuple[str, bool]], stop: list[str]) -> None:
    search, out = StopSearch(tuple(stop)), ""
    for text, is_shown in parts:
        for character in text:
            search.add(character, is_shown)
            out += search.take(last=False)
            if search.stops:
                break
        if search.stops:
            break
    out += "" if search.stops else search.take(last=True)
    written = "".join(text for text, _ in parts)
    shown = "".join(text for text, is_shown in parts if is_shown)
    assert shown.startswith(out) and not any(one in out for one in stop)
    assert search.stops == any(one in written or one in shown for one in stop)
    assert search.stops or out == shown


def test_nothing_is_kept_back_without_need() -> None:
    search = StopSearch(("abc",))
    for text, out in (("x", "x"), ("a", ""), ("a", "a"), ("b", ""), ("x", "abx")):
        search.add(text)
        assert search.take(last=False) == out


def test_special_tokens_are_those_that_decoding_leaves_out(prompts) -> None:
    assert special_tokens(prompts.tokenizer) == {0: "<pad>", 1: "<s>", 2: "</s>"}
