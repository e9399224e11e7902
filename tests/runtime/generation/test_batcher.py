"""Generation over a runner: the batch against PyTorch, its bounds and its failures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines import opening
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, tokenizer
from pipeline.models.reference import Reference
from pipeline.runtime.cache import HostCache
from pipeline.runtime.generation.batcher import Batcher
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.waiting import QueueFull
from pipeline.runtime.generation.writer import Piece, Writer
from pipeline.runtime.runner import Limits
from pipeline.types import SkipSet, UserError
from tests import tiny
from tests.prompting import LONG, changed

TEXTS = ("The list of names", "a", LONG, "If the exception is raised", "of")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[Any, Prompts, Path]]]:
    """(architecture, variant) → runner, Prompts and folder of a tiny model that never ends a text itself."""
    root, threads = tmp_path_factory.mktemp("generation"), torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two

    @functools.cache
    def opened(model_type: str = "llama", variant: str = "base") -> tuple[Any, Prompts, Path]:
        folder = root / model_type
        if not folder.exists():
            tiny.tokenizer(tiny.checkpoint(folder, model_type, vocab_size=tiny.WORDS, eos_token_id=None))
        graph = variants.cut(export.export_base(checkpoint.open_checkpoint(folder)), SkipSet.parse(variant))
        return opening.open_runner(graph), changed(tokenizer.prompts(folder), ends=()), folder

    yield opened
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts(models: Any) -> Prompts:
    return changed(models()[1], ends=(2,))


@dataclass(eq=False)
class Request:
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
        """Every finish reason and error of its pieces: one where all is well."""
        return [piece.finish or str(piece.error) for piece in self.pieces if piece.finish or piece.error]


class Spied:
    """A runner that notes (B, S, T) of every pass, and fails in one, or in some.

    Args:
        runner: it.
        fails: the number of a pass that fails, once.
        refuses: whether a pass fails, by its new tokens [B, S] and the number of rows.
        spoils: the rows whose logits are made NaN, by new tokens [B, S].
        knows: token ids below this pass the door; by default those of the embedding.
    """

    def __init__(
        self,
        runner: Any,
        fails: int = 0,
        refuses: Callable[[Any], bool] = lambda _: False,
        spoils: Callable[[Any], Any] | None = None,
        knows: int | None = None,
    ) -> None:
        self.runner, self.limits, self.piece, self.fails = runner, runner.limits, runner.piece, fails
        self.refuses, self.spoils, self.vocabulary = refuses, spoils, knows or runner.vocabulary
        self.passes: list[tuple[int, int, int]] = []

    def unknown(self, tokens: Any) -> int | None:
        return next((token for token in tokens if not 0 <= token < self.vocabulary), None)

    def forward(self, ids: Any, cache: Any, attention_mask: Any) -> Any:
        (rows, new), total = ids.shape, attention_mask.shape[1]
        assert cache is None or (cache.rows, cache.tokens) == (rows, total - new)
        self.passes.append((rows, new, total))
        if len(self.passes) == self.fails or self.refuses(ids):
            raise RuntimeError("out of memory")
        logits, after = self.runner.forward(ids, cache, attention_mask=attention_mask)
        if self.spoils is not None:
            logits[self.spoils(ids)] = np.nan
        return logits, after


def run(
    batcher: Batcher, prompts: Prompts, requests: list[Request], watch: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Adds each request before its step, steps until nothing is left, and gives the tokens of each."""
    for step in range(300):
        for one in requests:
            if one.at == step:
                batcher.add(one.row(prompts))
        busy = batcher.step()
        watch()
        if not busy and step >= max(one.at for one in requests):
            return [one.tokens for one in requests]
    raise AssertionError("the batch never ends")


def alone(runner: Any, prompts: Prompts, requests: list[Request]) -> list[list[int]]:
    """The tokens of the same requests, each in a batch of its own."""
    return [
        run(Batcher(runner), prompts, [Request(one.text, one.most, more=one.more)])[0] for one in requests
    ]


@pytest.mark.parametrize("variant", ["base", "attn0", "mlp1", "block1", "attn0-1"])
@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_tokens_are_pytorchs(model_type: str, variant: str, models: Any) -> None:
    """Greedy: alone, and in one batch whose rows come at different steps, finish early and are cancelled."""
    runner, prompts, folder = models(model_type, variant)
    reference = Reference(folder, SkipSet.parse(variant))
    truth = [reference.generate(prompts.encode(text), 12) for text in TEXTS]
    requests = [Request(text, at=at) for text, at in zip(TEXTS, (0, 0, 0, 3, 7), strict=True)]
    assert alone(runner, prompts, requests) == truth
    requests[1].most, requests[2].gone = 3, 5
    assert run(Batcher(runner), prompts, requests) == [truth[0], truth[1][:3], truth[2][:5], *truth[3:]]
    assert [one.ends for one in requests] == [["length"], ["length"], ["cancelled"], ["length"], ["length"]]


def test_an_end_token_ends_its_row_only(models: Any) -> None:
    runner, prompts, folder = models()
    reference = Reference(folder)
    end = reference.generate(prompts.encode(TEXTS[0]), 12)[-1]
    reference.model.generation_config.eos_token_id = end
    truth = [reference.generate(prompts.encode(text), 12) for text in TEXTS]
    requests, ending = [Request(text) for text in TEXTS], changed(prompts, ends=(end,))
    assert run(Batcher(runner), ending, requests) == truth
    assert {len(tokens) == 12 for tokens in truth} == {True, False}
    assert [one.ends for one in requests] == [["stop" if tokens[-1] == end else "length"] for tokens in truth]
    on = [Request(text, more={"ignore_eos": True}) for text in TEXTS]
    assert alone(runner, ending, on) == alone(runner, prompts, requests)


def test_a_long_prompt_comes_in_pieces_beside_a_writing_row(models: Any) -> None:
    """The row that writes gets a token after every piece."""
    runner, prompts, folder = models()
    requests, spied, reference = [Request("of"), Request(LONG, at=1)], Spied(runner), Reference(folder)
    batcher = Batcher(spied)
    batcher.piece = 7
    assert run(batcher, prompts, requests) == [
        reference.generate(prompts.encode(one.text), 12) for one in requests
    ]
    size, start = len(prompts.encode(LONG)), len(prompts.encode("of")) + 1
    assert size == 56 and spied.passes[2:18:2] == [(1, 7, 7 * n) for n in range(1, 9)]
    assert spied.passes[3:17:2] == [(1, 1, start + n) for n in range(1, 8)] and spied.passes[17] == (
        2,
        1,
        size + 1,
    )


def test_the_cache_is_bounded_and_first_come_is_first_served(models: Any) -> None:
    runner, prompts, _ = models()
    requests, size, crowds = (
        [Request(text, 4 + 3 * number % 7) for number, text in enumerate(TEXTS * 3)],
        80,
        set(),
    )
    batcher = Batcher(Spied(runner), rows=2, cache_tokens=size)

    def watch() -> None:
        groups = [group for group in (batcher.joining, batcher.writing) if group]
        needs = [row.most for group in groups for row in group.rows]
        assert len(needs) * max(needs, default=0) <= size and sum(group.mask.size for group in groups) <= size
        started = [bool(one.pieces) for one in requests]
        assert started == sorted(started, reverse=True)
        crowds.add((len(needs), bool(batcher.waiting)))

    assert run(batcher, prompts, requests, watch) == alone(runner, prompts, requests)
    assert max(rows * total for rows, _, total in batcher.runner.passes) <= size and all(
        one.ends == ["length"] for one in requests
    )
    assert {(1, True), (2, True)} <= crowds


def test_what_cannot_fit_or_wait_is_refused(models: Any) -> None:
    """Requests that were let in before are served; a cancelled one leaves its place in the queue."""
    runner, prompts, _ = models()
    requests = [Request("of"), Request("a", gone=0), Request("as", at=1)]
    batcher = Batcher(Spied(runner), rows=1, cache_tokens=40, queue=2)
    batcher.add(requests[0].row(prompts))
    batcher.add(requests[1].row(prompts))
    with pytest.raises(QueueFull, match="2 requests wait"):
        batcher.add(requests[2].row(prompts))
    batcher.step()
    assert not batcher.waiting and batcher.running == 1
    with pytest.raises(UserError, match=r"41 tokens.*holds 40"):
        batcher.add(Request("a", 40).row(prompts))
    with pytest.raises(UserError, match="no token"):
        batcher.add(Writer([], Sampling(), prompts, print))
    run(batcher, prompts, requests[2:])
    assert [one.ends for one in requests] == [["length"], ["cancelled"], ["length"]]
    batcher.runner.limits = Limits(past=20)
    with pytest.raises(UserError, match=r"22 tokens.*holds 21"):
        batcher.add(Request("a", 21).row(prompts))
    with pytest.raises(UserError, match=r"has 1 tokens and max_tokens is 256.*holds 256"):
        Request("a", 256).row(prompts)


@pytest.mark.parametrize("fails", range(1, 8))
def test_a_pass_that_fails_once_hurts_nobody(fails: int, models: Any) -> None:
    """While one prefills, while one writes, while one prefills beside one that writes, while two write."""
    runner, prompts, _ = models()
    requests = [Request("of"), Request("a", at=2), Request(LONG, at=2), Request("as", at=2)]
    tokens = run(Batcher(Spied(runner, fails), rows=3), prompts, requests)
    assert [one.ends for one in requests] == [["length"]] * 4
    assert tokens == alone(runner, prompts, requests)


def test_batches_that_never_fit_run_row_by_row(models: Any) -> None:
    """As where the device's memory holds one row only; caches of unlike lengths are put together again."""
    runner, prompts, folder = models()
    requests = [Request(text, at=at) for text, at in zip(TEXTS, (0, 0, 0, 3, 7), strict=True)]
    tokens = run(Batcher(Spied(runner, refuses=lambda ids: len(ids) > 1)), prompts, requests)
    assert tokens == [Reference(folder).generate(prompts.encode(text), 12) for text in TEXTS]


def test_a_runner_that_is_gone_ends_all_and_the_next_request_finds_it_back(models: Any) -> None:
    runner, prompts, _ = models()
    gone = [True]
    batcher = Batcher(Spied(runner, refuses=lambda _: gone[0]))
    requests = [Request("of"), Request(LONG), Request("a", at=1)]
    assert run(batcher, prompts, requests) == [[], [], []] and not batcher.busy
    assert [one.ends for one in requests] == [["out of memory"]] * 3
    gone[0] = False
    assert run(batcher, prompts, [Request("of")]) == alone(runner, prompts, [Request("of")])


BAD = tiny.WORDS + 7
"""A token that the embedding has no row for."""


@pytest.mark.parametrize("bad", [BAD, -1, 1 << 70])
def test_a_token_that_the_model_lacks_is_refused_at_the_door(bad: int, models: Any) -> None:
    """ONNX Runtime would take -1 for the last row, without a word."""
    runner, prompts, _ = models()
    batcher = Batcher(runner)
    with pytest.raises(UserError, match=rf"the token {bad}, .* embedding has no row for it: its 300 rows"):
        batcher.add(Writer([5, bad, 6], Sampling(3), prompts, print))
    assert not batcher.busy
    prompts.tokenizer.add_special_tokens(["<|im_start|>"])
    with pytest.raises(UserError, match=r"the token '<\|im_start\|>' \(id 300\)"):
        batcher.add(Writer(prompts.tokenizer.encode("a <|im_start|>").ids, Sampling(3), prompts, print))


@pytest.mark.parametrize("at", [0, 1, 2, 5])
@pytest.mark.parametrize("place", [0, 3, 20])
def test_a_prompt_that_onnxruntime_refuses_ends_alone(place: int, at: int, models: Any) -> None:
    """Where the door knows no bound: its Gather fails, in a piece of the prompt, beside texts of any age."""
    runner, prompts, folder = models()
    spied, pieces = Spied(runner, knows=1 << 30), list[Piece]()
    good = [Request("of"), Request(LONG), Request("a", at=1), Request("as", at=at)]
    batcher = Batcher(spied, rows=8)
    batcher.piece = 24
    ids = prompts.encode(LONG)[:30]
    for step in range(300):
        for one in good:
            if one.at == step:
                batcher.add(one.row(prompts))
        if step == at:
            batcher.add(Writer([*ids[:place], BAD, *ids[place:]], Sampling(5), prompts, pieces.append))
        if not batcher.step() and step > 5:
            break
    assert [one.tokens for one in good] == [
        Reference(folder).generate(prompts.encode(one.text), 12) for one in good
    ]
    assert [piece.token for piece in pieces] == [None] and "out of data bounds" in str(pieces[0].error)


def test_a_token_that_the_model_writes_and_cannot_read_ends_its_text(models: Any) -> None:
    """Logits may be wider than the embedding (padded heads)."""
    runner, prompts, folder = models()
    truth = [Reference(folder).generate(prompts.encode(text), 12) for text in TEXTS]
    most = max(max(tokens[:-1]) for tokens in truth)
    spied, requests = Spied(runner), [Request(text) for text in TEXTS]
    batcher = Batcher(spied)
    for one in requests:
        batcher.add(one.row(prompts))
    spied.vocabulary = most
    while batcher.step():
        pass
    ended = [tokens[: tokens.index(most) + 1] if most in tokens[:-1] else tokens for tokens in truth]
    assert [one.tokens for one in requests] == ended and 0 < sum(map(len, ended)) < 12 * len(TEXTS)
    for one, tokens in zip(requests, ended, strict=True):
        assert (one.ends == ["length"]) == (len(tokens) == 12)
        assert one.ends == ["length"] or "the model wrote" in one.ends[0]


@pytest.mark.parametrize("how", ["nan", "infinity", "minus infinity"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_logits_that_are_no_numbers_end_their_own_text(how: str, options: Any, models: Any) -> None:
    runner, prompts, _ = models()
    value = {"nan": np.nan, "infinity": np.inf, "minus infinity": -np.inf}[how]
    requests = [Request(text, more=options) for text in ("of", LONG, "a")]
    truth = alone(runner, prompts, requests)
    marked = truth[1][3]

    class Overflowing(Spied):
        def forward(self, ids: Any, cache: Any, attention_mask: Any) -> Any:
            logits, after = super().forward(ids, cache, attention_mask)
            rows = (attention_mask.sum(axis=1) > len(prompts.encode(LONG)) + 3) & (ids[:, -1] == marked)
            logits[rows, -1, 17] = value
            return logits, after

    tokens = run(Batcher(Overflowing(runner)), prompts, requests)
    assert [tokens[0], tokens[2]] == [truth[0], truth[2]] and tokens[1] == truth[1][: len(tokens[1])]
    assert len(tokens[1]) < 12 and "are not finite (NaN or infinity)" in requests[1].ends[0]


def test_no_memory_to_join_ends_those_that_join(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, prompts, _ = models()
    writes, joins = Request("of"), Request("a", at=2)
    batcher = Batcher(runner)
    batcher.add(writes.row(prompts))
    batcher.step()
    batcher.add(joins.row(prompts))
    with monkeypatch.context() as patch:
        patch.setattr(HostCache, "beside", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        batcher.step()
    while batcher.step():
        pass
    assert joins.ends == ["no room"] and [writes.tokens] == alone(runner, prompts, [writes])


BROKEN: dict[str, dict[str, int]] = {
    "once": {"deaf": 1}, "always": {"deaf": 99}, "when cancelled": {"gone": 2, "deaf": 99},
    "requests while it writes": {"moody": 2}, "requests while it waits": {"moody": 0},
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_listener_that_breaks_hurts_nobody_else(how: str, models: Any) -> None:
    runner, prompts, _ = models()
    others = [Request("of"), Request(LONG), Request("as", at=4)]
    tokens = run(Batcher(runner), prompts, [Request("a", at=1, **BROKEN[how]), *others])
    assert tokens[1:] == alone(runner, prompts, others) and all(one.ends == ["length"] for one in others)


def test_drain_ends_every_request(models: Any) -> None:
    runner, prompts, _ = models()
    batcher, requests = Batcher(runner, rows=2), [Request("of"), Request("a"), Request("as")]
    for one in requests:
        batcher.add(one.row(prompts))
    batcher.step()
    batcher.drain(RuntimeError("unloaded"))
    assert [one.ends for one in requests] == [["unloaded"]] * 3 and not batcher.step()


@pytest.mark.parametrize("leaves", [{"most": 3}, {"gone": 3}])
def test_padding_goes_when_the_long_row_does(leaves: dict[str, int], models: Any) -> None:
    runner, prompts, _ = models()
    spied, requests = Spied(runner), [Request(LONG, **leaves), Request("of")]
    assert run(Batcher(spied), prompts, requests)[1] == alone(runner, prompts, requests)[1]
    short, long = (len(prompts.encode(text)) for text in ("of", LONG))
    assert spied.passes == [
        (2, long, long),
        (2, 1, long + 1),
        (2, 1, long + 2),
        *((1, 1, short + n) for n in range(3, 12)),
    ]


def test_a_seed_gives_its_text_alone_and_in_a_batch(models: Any) -> None:
    runner, prompts, _ = models()
    requests = [
        Request(text, at=at, more={"temperature": 1.2, "seed": at, "top_p": 0.9})
        for at, text in enumerate((LONG, "of", "of"))
    ]
    tokens = run(Batcher(runner), prompts, requests)
    assert tokens == alone(runner, prompts, requests) and tokens[1] != tokens[2]
