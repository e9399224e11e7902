"""Stop strings in a text that grows, and whose special tokens do not appear in what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer


@dataclass(slots=True)
class StopSearch:
    """Text that is not out yet, because it may be the beginning of a stop string.

    Attributes:
        stop: the strings that end the text.
        written: the text with its special tokens.
        shown: whether each of its characters comes out.
        total, out: characters that were added so far, and those that `take` is through with.
    """

    stop: tuple[str, ...]
    written: str = ""
    shown: list[bool] = field(default_factory=list)
    stops: bool = False
    total: int = 0
    out: int = 0

    def copy(self) -> StopSearch:
        """Another one with the same text."""
        return replace(self, shown=list(self.shown))

    def add(self, text: str, is_shown: bool = True) -> None:
        """Adds text, or a special token that is not shown."""
        self.written += text
        self.total += len(text)
        self.shown += [is_shown] * len(text)
        self.stops = self.stops or bool(self._places())

    def take(self, last: bool) -> str:
        """The text that is certain now: up to the first stop string, or what can begin none.

        Args:
            last: no text follows.
        """
        size = len(self.written)
        if self.stops:
            end = min(self._places())
        else:
            end = size if last else min(self._beginnings(), default=size)
        text = "".join(c for c, is_shown in zip(self.written[:end], self.shown, strict=False) if is_shown)
        self.out += end
        self.written, self.shown = ("", []) if self.stops else (self.written[end:], self.shown[end:])
        return text

    def _forms(self) -> Iterator[tuple[str, list[int]]]:
        """The text as it is written and as it comes out, each with its characters' places in the former."""
        yield self.written, list(range(len(self.written)))
        if not all(self.shown):
            places = [place for place, is_shown in enumerate(self.shown) if is_shown]
            yield "".join(self.written[place] for place in places), places

    def _places(self) -> list[int]:
        """Where each stop string that is there begins."""
        forms = list(self._forms())
        return [places[at] for text, places in forms for stop in self.stop if (at := text.find(stop)) >= 0]

    def _beginnings(self) -> list[int]:
        """Where the end of the text is the beginning of a stop string."""
        return [
            places[len(text) - count]
            for text, places in self._forms()
            for stop in self.stop
            if (count := _overlap(text, stop))
        ]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that are the beginning of the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Token id → the text of the special tokens, which decoding leaves out."""
    added = tokenizer.get_added_tokens_decoder()
    return {number: token.content for number, token in added.items() if token.special}
