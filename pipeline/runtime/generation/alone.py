"""One text by itself, from start to end: what `generate` prints, and what a served text must equal."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.runtime.generation.batcher import Batcher
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece, Writer
from pipeline.runtime.runner import Runner


def pieces(
    runner: Runner,
    prompts: Prompts,
    prompt: list[int],
    sampling: Sampling,
    sink: Callable[[Piece], None] = lambda _: None,
) -> list[Piece]:
    """The pieces of the text that follows a prompt.

    Args:
        runner: of the model.
        prompts: its tokenizer and context.
        prompt: tokens.
        sampling: how tokens are picked.
        sink: called with each piece as it comes.

    Raises:
        UserError: prompt and text do not fit into the context.
        Exception: what the runner raised.
    """
    text = list[Piece]()

    def take(piece: Piece) -> None:
        text.append(piece)
        sink(piece)

    writer = Writer(prompt, sampling, prompts, take)
    batcher = Batcher(runner, rows=1, cache_tokens=writer.most)
    batcher.add(writer)
    while batcher.step():
        pass
    if text[-1].error:
        raise text[-1].error
    return text
