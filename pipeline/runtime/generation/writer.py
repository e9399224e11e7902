"""One text in progress: picks its tokens, and gives out its text as soon as that is certain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.runtime.generation.logprobs import TextLogprobs, WrittenToken
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.rows import Turn
from pipeline.runtime.generation.sampling import Sampler, Sampling
from pipeline.runtime.generation.stops import StopSearch, special_tokens
from pipeline.runtime.runner import Array
from pipeline.types import UserError

Finish = Literal["stop", "length", "cancelled"]
HALF = "\ufffd"
"""What a decoder writes for bytes that are no whole character yet."""
CONTEXT_OF_DECODING = 16
"""Prompt tokens that the decoder sees before the first new one: enough for spaces and for long characters."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to a text.

    Attributes:
        text: new text that is certain; '' while it may become a stop string or half a character.
        token: its id; None where no token was picked (cancelled).
        finish: why the text ends here; None where it goes on.
        error: what went wrong; ends the text.
        logprobs: the tokens whose text is out with this piece, where they are wanted.
    """

    text: str = ""
    token: int | None = None
    finish: Finish | None = None
    error: Exception | None = None
    logprobs: tuple[WrittenToken, ...] = ()


class Writer:
    """A request as the batcher sees it (`rows.Row`).

    Args:
        prompt: its tokens.
        sampling: how tokens are picked, and what ends the text.
        prompts: the model's tokenizer and context.
        sink: called with each Piece.
        is_cancelled: called before each step.
        turn: when it is served.

    Raises:
        UserError: prompt and text do not fit into the context.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        prompts: Prompts,
        sink: Callable[[Piece], None],
        is_cancelled: Callable[[], bool] = lambda: False,
        turn: Turn | None = None,
    ) -> None:
        room = prompts.conventions.context - len(prompt)
        if room < sampling.max_tokens:
            raise UserError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {sampling.max_tokens}; "
                f"together the context holds {prompts.conventions.context}"
            )
        self.prompt, self.most, self.turn = prompt, len(prompt) + sampling.max_tokens, turn or Turn()
        self.sampling, self.prompts, self.sink, self.is_cancelled = sampling, prompts, sink, is_cancelled
        self.sampler = Sampler(sampling, prompt)
        self.text = TextStream(prompts, prompt, sampling.stop)
        wanted = sampling.logprobs
        self.logprobs = None if wanted is None else TextLogprobs(prompts.spelling, self.text, wanted)
        self.count = 0

    def cancelled(self) -> bool:
        """Whether nobody waits for its text any more."""
        return self.is_cancelled()

    def take(self, logits: Array) -> int | None:
        """Picks the next token from its logits [V]; None where the text ends with it."""
        token = self.sampler.pick(logits)
        self.count += 1
        finish: Finish | None = "length" if self.count == self.sampling.max_tokens else None
        is_end = token in self.prompts.ends and not self.sampling.ignore_eos
        if self.logprobs and not is_end:
            self.logprobs.pick(token, logits)
        if is_end:
            text, finish = self.text.end(token), "stop"
        else:
            text = self.text.push(token)
            if self.text.stopped:
                finish = "stop"
            elif finish:
                text += self.text.rest()
                finish = "stop" if self.text.stopped else finish
        tokens = self.logprobs.take(last=bool(finish)) if self.logprobs else ()
        self.sink(Piece(text, token, finish, logprobs=tokens))
        return None if finish else token

    def spelled(self, token: int) -> str:
        """The token's text and id."""
        is_id = 0 <= token < 1 << 32  # others the tokenizer does not even take
        word = self.prompts.tokenizer.id_to_token(token) if is_id else None
        return f"the token {token}" if word is None else f"the token {word!r} (id {token})"

    def end(self, error: Exception | None = None) -> None:
        """Ends it early: it was cancelled, or an error stopped it."""
        self.sink(Piece(error=error) if error else Piece(self.text.rest(), finish="cancelled"))


class TextStream:
    """Tokens in, text out, up to the first stop string.

    Special tokens are no part of the text, but a stop string may name them (`<|eot_id|>`), alone or beside
    text. So stop strings are looked for in the text with special tokens as they are written, and in the text
    that comes out.

    New text is what the decoded window gains by a token, once it does not end in half a character. The window
    begins one release back, so that what a decoder does to a beginning (it strips a space) happens with and
    without the new token. tokenizers' own DecodeStream raises on byte tokens that make no character, and
    repeats a prompt that ends in U+FFFD.

    Args:
        prompts: the tokenizer.
        prompt: tokens before the text.
        stop: strings that end it; what may still become one is kept back.
    """

    def __init__(self, prompts: Prompts, prompt: list[int], stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop, self.stopped = prompts.tokenizer, stop, False
        self.window = prompt[-CONTEXT_OF_DECODING:]
        self.released = len(self.window)  # tokens of the window whose text is out
        self.pending = StopSearch(stop)
        self.special = special_tokens(prompts.tokenizer) if stop else {}

    @property
    def is_whole(self) -> bool:
        """Whether no token waits for another to be a character."""
        return self.released == len(self.window)

    def gain(self, token: int) -> str:
        """The text that would be new by this token, half a character with it."""
        return self._gained([*self.window, token])

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        self.window.append(token)
        new = self._gained()
        if token in self.special:
            return self._mark(new, self.special[token])
        if new.endswith(HALF):
            return ""
        self._shift(new)
        self.pending.add(new)
        return self._release(last=False)

    def rest(self) -> str:
        """What is left when no token follows: text that was kept back, and half a character as U+FFFD."""
        if self.stopped:
            return ""
        self.pending.add(self._gained())
        return self._release(last=True)

    def end(self, token: int) -> str:
        """What is left before the token that ends the text: it is no part of it, special or not."""
        self.pending.add(self._gained())
        self.pending.add(self.tokenizer.id_to_token(token) or "", is_shown=False)
        return self._release(last=True)

    def _mark(self, new: str, name: str) -> str:
        """Looks for stop strings with a special token behind the new text.

        Half a character waits for its other half, which may follow behind the token, unless the text stops.
        """
        is_half = new.endswith(HALF)
        trial = self.pending.copy()
        trial.add(new)
        trial.add(name, is_shown=False)
        if is_half and not trial.stops:
            self.pending.add(name, is_shown=False)
            return ""
        self.pending = trial
        self._shift(new)
        return self._release(last=False)

    def _shift(self, gained: str) -> None:
        """The window's tokens are out; the next window begins with those that were not.

        Those of no text (special tokens) begin none: a decoder would strip the space of what follows them.
        """
        fresh = self.window[self.released :]
        if self.tokenizer.decode(fresh, skip_special_tokens=True):
            self.window = fresh
        elif not gained:
            del self.window[self.released :]
        self.released = len(self.window)

    def _gained(self, window: list[int] | None = None) -> str:
        """The text of the window's tokens whose text is not out yet."""
        known: str = self.tokenizer.decode(self.window[: self.released], skip_special_tokens=True)
        text: str = self.tokenizer.decode(window or self.window, skip_special_tokens=True)
        return text[len(known) :]

    def _release(self, last: bool) -> str:
        text = self.pending.take(last)
        self.stopped = self.pending.stops
        return text
