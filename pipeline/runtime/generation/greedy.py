"""Greedy texts where nothing is streamed or drawn: scoring and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.runtime.generation.batcher import Batcher
from pipeline.runtime.generation.rows import Turn
from pipeline.runtime.generation.sampling import finite
from pipeline.runtime.runner import Array, Runner
from pipeline.types import UserError


class GreedyRow:
    """A row of the batcher (`rows.Row`) that takes the likeliest tokens until `ends` says so.

    Attributes:
        number: which of the prompts it is.
        tokens: the text so far.
        error: what ended it early.
        done: whether no token follows.
        turn: a share of its own, for any time.
    """

    def __init__(
        self, number: int, prompt: Sequence[int], max_tokens: int, ends: Callable[[list[int]], bool]
    ) -> None:
        self.number, self.prompt, self.most = number, prompt, len(prompt) + max_tokens
        self.max_tokens, self.ends, self.done, self.turn = max_tokens, ends, False, Turn()
        self.tokens: list[int] = []
        self.error: Exception | None = None

    def cancelled(self) -> bool:
        """Never."""
        return False

    def take(self, logits: Array) -> int | None:
        """The likeliest token of the logits [V]; None where the text ends with it.

        Raises:
            UserError: the logits hold NaN or infinity.
        """
        self.tokens.append(int(finite(logits).argmax()))
        self.done = len(self.tokens) == self.max_tokens or self.ends(self.tokens)
        return None if self.done else self.tokens[-1]

    def spelled(self, token: int) -> str:
        """Its id: no tokenizer is known here."""
        return f"token {token}"

    def end(self, error: Exception | None = None) -> None:
        """Ends the text early."""
        self.error, self.done = error, True


def greedy_batch(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Callable[[list[int]], bool],
    rows: int = 8,
) -> Iterator[GreedyRow]:
    """The greedy continuation of each prompt, in the order in which they finish; refused ones come first.

    Args:
        runner: of the model.
        prompts: tokens of each.
        max_tokens: of each text.
        ends: whether a text is finished, given its tokens so far.
        rows: texts that are written side by side.

    Returns:
        A row for each prompt; one whose `error` is set (an empty prompt, an unknown token, logits that are
        not finite, an error of the runner) has no text.
    """
    longest = max(map(len, prompts), default=0) + max_tokens
    batcher = Batcher(runner, rows, rows * longest, queue=len(prompts))
    left = [GreedyRow(number, prompt, max_tokens, ends) for number, prompt in enumerate(prompts)]
    for row in left:
        try:
            batcher.add(row)
        except UserError as error:
            row.end(error)
    yield from (row for row in left if row.done)
    left = [row for row in left if not row.done]
    while batcher.step():
        yield from (row for row in left if row.done)
        left = [row for row in left if not row.done]
