"""Generation over a runner: the batch against PyTorch, its bounds and its failures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines import opening
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, tokenizer
from pipeline.models.reference import Reference
from pipeline.runtime.generation.batcher import Batcher, QueueFull
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece, Writer
from pipeline.runtime.runner import Limits
from pipeline.types import SkipSet, UserError
from tests import tiny

LONG = "The following sections describe the standard types that are built into the interpreter."
TEXTS = ("The list of names", "a", LONG, "If the exception is raised", "of")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[Any, Prompts, Path]]]:
    """(architecture, variant) → runner, Prompts and folder of a tiny model that never ends a text itself."""
    root, threads = tmp_path_factory.mktemp("generation"), torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two

    @functools.cache
    def made(model_type: str = "llama", variant: str = "base") -> tuple[Any, Prompts, Path]:
        folder = root / model_type
        if not folder.exists():
            tiny.tokenizer(tiny.checkpoint(folder, model_type, vocab_size=tiny.WORDS, eos_token_id=None))
        graph = variants.cut(export.export_base(checkpoint.open_checkpoint(folder)), SkipSet.parse(variant))
        return opening.open_runner(graph), tokenizer.prompts(folder), folder

    yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts(models: Any) -> Prompts:
    return changed(models()[1], ends=(2,))


def changed(prompts: Prompts, **conventions: Any) -> Prompts:
    return Prompts(prompts.tokenizer, replace(prompts.conventions, **conventions))


@dataclass(eq=False)
class Asked:
    """A request for `most` tokens, and the pieces that it got.

    Attributes:
        at: the step before which it comes.
        gone: tokens after which it is cancelled.
        moody: tokens after which the question whether it is cancelled fails.
        deaf: pieces that its listener fails to take, from the third on.
    """

    text: str
    most: int = 12
    at: int = 0
    gone: int = 99
    moody: int = 99
    deaf: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)

    def row(self, prompts: Prompts) -> Writer:
        return Writer(
            prompts.encode(self.text), Sampling(self.most, **self.more), prompts, self.take, self.cancelled
        )

    def cancelled(self) -> bool:
        if len(self.pieces) == self.moody:
            raise ConnectionError("cannot tell")
        return len(self.pieces) >= self.gone

    def take(self, piece: Piece) -> None:
        if len(self.pieces) >= 2 and self.deaf:
            self.deaf -= 1
            raise BrokenPipeError("nobody listens")
        self.pieces.append(piece)

    @property
    def tokens(self) -> list[int]:
        return [piece.token for piece in self.pieces if piece.token is not None]

    @property
    def ends(self) -> list[str]:
        """Every finish reason and error that it was told: one where all is well."""
        return [piece.finish or str(piece.error) for piece in self.pieces if piece.finish or piece.error]


class Spied:
    """A runner that notes (B, S, T) of every pass, and fails in one."""

    def __init__(self, runner: Any, fails: int = 0) -> None:
        self.runner, self.limits, self.piece, self.fails = runner, runner.limits, runner.piece, fails
        self.passes: list[tuple[int, int, int]] = []

    def forward(self, ids: Any, cache: Any, attention_mask: Any) -> Any:
        (rows, new), total = ids.shape, attention_mask.shape[1]
        assert {(array.shape[0], array.shape[2]) for array in (cache or {}).values()} <= {(rows, total - new)}
        self.passes.append((rows, new, total))
        if len(self.passes) == self.fails:
            raise RuntimeError("out of memory")
        return self.runner.forward(ids, cache, attention_mask=attention_mask)


def run(
    batcher: Batcher, prompts: Prompts, asked: list[Asked], watch: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Adds each request before its step, steps until nothing is left, and gives the tokens of each."""
    for step in range(300):
        for one in asked:
            if one.at == step:
                batcher.add(one.row(prompts))
        busy = batcher.step()
        watch()
        if not busy and step >= max(one.at for one in asked):
            return [one.tokens for one in asked]
    raise AssertionError("the batch never ends")


def alone(runner: Any, prompts: Prompts, asked: list[Asked]) -> list[list[int]]:
    """The tokens of the same requests, each in a batch of its own."""
    return [run(Batcher(runner), prompts, [Asked(one.text, one.most, more=one.more)])[0] for one in asked]


@pytest.mark.parametrize("variant", ["base", "attn0", "mlp1", "block1", "attn0-1"])
@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_tokens_are_pytorchs(model_type: str, variant: str, models: Any) -> None:
    """Greedy: alone, and in one batch whose rows come at different steps, finish early and are cancelled."""
    runner, prompts, folder = models(model_type, variant)
    reference = Reference(folder, SkipSet.parse(variant))
    truth = [reference.generate(prompts.encode(text), 12) for text in TEXTS]
    asked = [Asked(text, at=at) for text, at in zip(TEXTS, (0, 0, 0, 3, 7), strict=True)]
    assert alone(runner, prompts, asked) == truth
    asked[1].most, asked[2].gone = 3, 5
    assert run(Batcher(runner), prompts, asked) == [truth[0], truth[1][:3], truth[2][:5], *truth[3:]]
    assert [one.ends for one in asked] == [["length"], ["length"], ["cancelled"], ["length"], ["length"]]


def test_an_end_token_ends_its_row_only(models: Any) -> None:
    runner, prompts, folder = models()
    reference = Reference(folder)
    end = reference.generate(prompts.encode(TEXTS[0]), 12)[-1]
    reference.model.generation_config.eos_token_id = end
    truth = [reference.generate(prompts.encode(text), 12) for text in TEXTS]
    asked, ending = [Asked(text) for text in TEXTS], changed(prompts, ends=(end,))
    assert run(Batcher(runner), ending, asked) == truth
    assert {len(tokens) == 12 for tokens in truth} == {True, False}
    assert [one.ends for one in asked] == [["stop" if tokens[-1] == end else "length"] for tokens in truth]
    on = [Asked(text, more={"ignore_eos": True}) for text in TEXTS]
    assert alone(runner, ending, on) == alone(runner, prompts, asked)


def test_a_long_prompt_comes_in_pieces_beside_a_writing_row(models: Any) -> None:
    """The row that writes gets a token after every piece."""
    runner, prompts, folder = models()
    asked, spied, reference = [Asked("of"), Asked(LONG, at=1)], Spied(runner), Reference(folder)
    batcher = Batcher(spied)
    batcher.piece = 7
    assert run(batcher, prompts, asked) == [reference.generate(prompts.encode(one.text), 12) for one in asked]
    size, start = len(prompts.encode(LONG)), len(prompts.encode("of")) + 1
    assert size == 56 and spied.passes[2:18:2] == [(1, 7, 7 * n) for n in range(1, 9)]
    assert spied.passes[3:17:2] == [(1, 1, start + n) for n in range(1, 8)] and spied.passes[17] == (
        2,
        1,
        size + 1,
    )


def test_the_cache_is_bounded_and_first_come_is_first_served(models: Any) -> None:
    runner, prompts, _ = models()
    asked, size, crowds = (
        [Asked(text, 4 + 3 * number % 7) for number, text in enumerate(TEXTS * 3)],
        80,
        set(),
    )
    batcher = Batcher(Spied(runner), cache_tokens=size)

    def watch() -> None:
        groups = [group for group in (batcher.joining, batcher.writing) if group]
        needs = [row.most for group in groups for row in group.rows]
        assert len(needs) * max(needs, default=0) <= size and sum(group.mask.size for group in groups) <= size
        started = [bool(one.pieces) for one in asked]
        assert started == sorted(started, reverse=True)
        crowds.add((len(needs), bool(batcher.waiting)))

    assert run(batcher, prompts, asked, watch) == alone(runner, prompts, asked)
    assert max(rows * total for rows, _, total in batcher.runner.passes) <= size and all(
        one.ends == ["length"] for one in asked
    )
    assert {(1, True), (2, True)} <= crowds


def test_what_cannot_fit_or_wait_is_refused(models: Any) -> None:
    """Requests that were let in before are served; a cancelled one leaves its place in the queue."""
    runner, prompts, _ = models()
    asked = [Asked("of"), Asked("a", gone=0), Asked("as", at=1)]
    batcher = Batcher(Spied(runner), rows=1, cache_tokens=40, queue=2)
    batcher.add(asked[0].row(prompts))
    batcher.add(asked[1].row(prompts))
    with pytest.raises(QueueFull, match="2 requests wait"):
        batcher.add(asked[2].row(prompts))
    batcher.step()
    assert not batcher.waiting and batcher.running == 1
    with pytest.raises(UserError, match=r"41 tokens.*holds 40"):
        batcher.add(Asked("a", 40).row(prompts))
    with pytest.raises(UserError, match="no token"):
        batcher.add(Writer([], Sampling(), prompts, print))
    run(batcher, prompts, asked[2:])
    assert [one.ends for one in asked] == [["length"], ["cancelled"], ["length"]]
    batcher.runner.limits = Limits(past=20)
    with pytest.raises(UserError, match=r"22 tokens.*holds 21"):
        batcher.add(Asked("a", 21).row(prompts))
    with pytest.raises(UserError, match=r"has 1 tokens and max_tokens is 256.*holds 256"):
        Asked("a", 256).row(prompts)


@pytest.mark.parametrize(("fails", "hurt"), [(1, 1), (3, 1), (4, 2), (5, 2)])
def test_an_error_of_the_runner_ends_the_batch_and_not_the_queue(fails: int, hurt: int, models: Any) -> None:
    """While one prefills, while one writes, while one prefills beside one that writes, while two write."""
    runner, prompts, _ = models()
    asked = [Asked("of"), Asked("a", at=2), Asked(LONG, at=2), Asked("as", at=2)]
    tokens = run(Batcher(Spied(runner, fails), rows=2), prompts, asked)
    assert [one.ends for one in asked] == [["out of memory"]] * hurt + [["length"]] * (4 - hurt)
    assert tokens[hurt:] == alone(runner, prompts, asked)[hurt:] and len(tokens[0]) < 12


BROKEN: dict[str, dict[str, int]] = {
    "once": {"deaf": 1}, "always": {"deaf": 99}, "when cancelled": {"gone": 2, "deaf": 99},
    "asked while it writes": {"moody": 2}, "asked while it waits": {"moody": 0},
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_listener_that_breaks_hurts_nobody_else(how: str, models: Any) -> None:
    runner, prompts, _ = models()
    others = [Asked("of"), Asked(LONG), Asked("as", at=4)]
    tokens = run(Batcher(runner), prompts, [Asked("a", at=1, **BROKEN[how]), *others])
    assert tokens[1:] == alone(runner, prompts, others) and all(one.ends == ["length"] for one in others)


def test_drain_ends_every_request(models: Any) -> None:
    runner, prompts, _ = models()
    batcher, asked = Batcher(runner, rows=2), [Asked("of"), Asked("a"), Asked("as")]
    for one in asked:
        batcher.add(one.row(prompts))
    batcher.step()
    batcher.drain(RuntimeError("unloaded"))
    assert [one.ends for one in asked] == [["unloaded"]] * 3 and not batcher.step()


@pytest.mark.parametrize("leaves", [{"most": 3}, {"gone": 3}])
def test_padding_goes_when_the_long_row_does(leaves: dict[str, int], models: Any) -> None:
    runner, prompts, _ = models()
    spied, asked = Spied(runner), [Asked(LONG, **leaves), Asked("of")]
    assert run(Batcher(spied), prompts, asked)[1] == alone(runner, prompts, asked)[1]
    short, long = (len(prompts.encode(text)) for text in ("of", LONG))
    assert spied.passes == [
        (2, long, long),
        (2, 1, long + 1),
        (2, 1, long + 2),
        *((1, 1, short + n) for n in range(3, 12)),
    ]


def test_a_seed_gives_its_text_alone_and_in_a_batch(models: Any) -> None:
    runner, prompts, _ = models()
    asked = [
        Asked(text, at=at, more={"temperature": 1.2, "seed": at, "top_p": 0.9})
        for at, text in enumerate((LONG, "of", "of"))
    ]
    tokens = run(Batcher(runner), prompts, asked)
    assert tokens == alone(runner, prompts, asked) and tokens[1] != tokens[2]
