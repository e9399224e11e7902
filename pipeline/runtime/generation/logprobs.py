"""Log-probabilities of the tokens of a text, given out together with the text that they stand for.

They are those of the model itself: log-softmax of its logits as they come, before temperature, penalties,
top-k and top-p (OpenAI's `logprobs`; vLLM's `raw_logprobs`).

Legend: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.runtime.generation.spelling import Spelling, readable
from pipeline.runtime.runner import Array

if TYPE_CHECKING:
    from pipeline.runtime.generation.writer import TextStream


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    r"""A token that could stand at a place.

    Attributes:
        token: its text there; bytes that are no whole character as `\xf0\x9f`; a special token's name.
        bytes: what it adds to the text; None for a special token, which the text does not show.
        logprob: natural logarithm of its probability.
    """

    token: str
    bytes: bytes | None
    logprob: float


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token of the text, and the likeliest tokens of its place, among which it need not be."""

    chosen: TokenLogprob
    likeliest: tuple[TokenLogprob, ...]


class TextLogprobs:
    """The tokens of one text, in order. Call `pick` before the stream takes a token, `take` behind it.

    The bytes of the tokens that are given out are those of the text that is. The token in which a stop string
    begins is whole; tokens that no text shows for lying within or behind a stop string, and the token that
    ends the text, are left out.

    Args:
        spelling: of the vocabulary.
        stream: the text.
        count: alternatives of each token.
    """

    def __init__(self, spelling: Spelling, stream: TextStream, count: int) -> None:
        self.spelling, self.stream, self.count = spelling, stream, count
        self.group = list[WrittenToken]()  # tokens that are whole characters only together
        self.gained = ""
        self.place = 0
        self.waiting = deque[tuple[int, int, WrittenToken]]()

    def pick(self, token: int, logits: Array) -> None:
        """Keeps a token that was picked from its logits [V]."""
        values = log_softmax(logits)
        self.gained = self.stream.gain(token)
        chosen = self._spelled(token, values)
        self.group.append(
            WrittenToken(chosen, tuple(self._spelled(one, values) for one in likeliest(values, self.count)))
        )

    def take(self, last: bool) -> tuple[WrittenToken, ...]:
        """The tokens whose text is out now.

        Args:
            last: no text follows.
        """
        if self.group and (last or self.stream.is_whole):
            self._settle()
        ready, out = list[WrittenToken](), self.stream.pending.out
        while self.waiting:
            begin, end, token = self.waiting[0]
            if end > out and not (last and begin < out):
                break
            ready.append(token)
            self.waiting.popleft()
        return tuple(ready)

    def _spelled(self, token: int, values: Array) -> TokenLogprob:
        logprob = float(values[token])
        if token in self.spelling.special:
            return TokenLogprob(self.spelling.special[token], None, logprob)
        text = self.stream.gain(token)
        content: bytes | None = text.encode()
        if not self.stream.is_whole or text.endswith("\ufffd"):  # what is gained has other tokens' bytes, too
            content = self.spelling.raw(token)
        content = text.encode() if content is None else content
        return TokenLogprob(readable(content), content, logprob)

    def _settle(self) -> None:
        """Gives the group its place in the text.

        Where its tokens' own bytes are not those of the text (they make no character, and it shows U+FFFD),
        its last token has all of them.
        """
        shown = self.gained.encode()
        if b"".join(token.chosen.bytes or b"" for token in self.group) != shown:
            last = max((k for k, one in enumerate(self.group) if one.chosen.bytes is not None), default=-1)
            self.group = [
                one if one.chosen.bytes is None else _with_bytes(one, shown if k == last else b"")
                for k, one in enumerate(self.group)
            ]
        end = self.stream.pending.total
        self.waiting += [(self.place, end, token) for token in self.group]
        self.place, self.group = end, []


def log_softmax(logits: Array) -> Array:
    """Of logits [V], in float64."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    return scores


def likeliest(values: Array, count: int) -> list[int]:
    """The ids of the largest of the values [V], largest first; of equal ones the lowest id first."""
    count = min(count, len(values))
    if not count:
        return []
    ids = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return [int(one) for one in ids[np.argsort(-values[ids], kind="stable")][:count]]


def _with_bytes(token: WrittenToken, content: bytes) -> WrittenToken:
    """The token with these bytes, also where it stands among the likeliest."""
    chosen = TokenLogprob(readable(content), content, token.chosen.logprob)
    return WrittenToken(chosen, tuple(chosen if one == token.chosen else one for one in token.likeliest))
