"""Generation on the real model: a ragged batch beside PyTorch, text beside transformers', and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from pipeline.cli.commands import app
from pipeline.engines import opening
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, tokenizer
from pipeline.models.reference import Reference
from pipeline.runtime.generation.batcher import Batcher
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece, Writer
from pipeline.types import SkipSet

pytestmark = pytest.mark.slow
QUESTION = "What is the capital of France?"
TEXTS = (
    "The capital of France is",
    "A hash table is a data structure that implements an associative array; it maps",
    "こんにちは、元気ですか？ 😀",
    "def fibonacci(n):\n    ",
)


@pytest.fixture
def base(demo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SmolLM2's base graph in the shared project root; nothing that these tests write is read again."""
    monkeypatch.chdir(demo_root)
    return export.export_base(checkpoint.resolve("demo"))


@pytest.mark.parametrize("name", ["base", "attn22-29"])
def test_a_ragged_batch_writes_what_pytorch_writes(name: str, base: Path) -> None:
    """Token for token and letter for letter, while rows join and one is cancelled in the middle."""
    graph, words, prompts = (
        variants.cut(base, SkipSet.parse(name)),
        AutoTokenizer.from_pretrained(base.parent),
        tokenizer.prompts(base.parent),
    )
    reference = Reference(base.parent, SkipSet.parse(name))
    truth = [
        reference.generate(prompts.encode(text), 5 if number == 1 else 12)
        for number, text in enumerate(TEXTS)
    ]
    pieces: list[list[Piece]] = [[] for _ in TEXTS]
    with opening.open_runner(graph) as runner:
        batcher = Batcher(runner)
        for number, (text, row) in enumerate(zip(TEXTS, pieces, strict=True)):
            cancelled = (lambda: len(pieces[1]) >= 5) if number == 1 else (lambda: False)
            batcher.add(Writer(prompts.encode(text), Sampling(max_tokens=12), prompts, row.append, cancelled))
            batcher.step()
        while batcher.step():
            pass
    assert [[piece.token for piece in row if piece.token is not None] for row in pieces] == truth
    assert ["".join(piece.text for piece in row) for row in pieces] == [
        words.decode(tokens, skip_special_tokens=True) for tokens in truth
    ]
    assert pieces[1][-1].finish == "cancelled" and {row[-1].finish for row in pieces} <= {
        "length",
        "stop",
        "cancelled",
    }


def test_the_chat_template_is_rendered_as_transformers_does(base: Path) -> None:
    words, prompts = AutoTokenizer.from_pretrained(base.parent), tokenizer.prompts(base.parent)
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "é😀"},
    ]
    for chat in (messages, [{"role": "system", "content": "You rhyme."}, *messages], messages[:1]):
        assert prompts.render(chat) == words.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        assert prompts.chat(chat) == words.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )


@pytest.mark.parametrize("chat", [False, True])
def test_the_command_prints_that_text(chat: bool, base: Path) -> None:
    """With --json, plain and with --stream: PyTorch's greedy text, after the prompt where it is no chat."""
    words = AutoTokenizer.from_pretrained(base.parent)
    prompt = QUESTION if chat else TEXTS[0]
    messages = [{"role": "user", "content": prompt}]
    ids = words.encode(prompt)
    if chat:
        ids = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    tokens = Reference(base.parent).generate(ids, 8)
    text = words.decode(tokens, skip_special_tokens=True)
    assert "Paris" in text

    def printed(*options: str) -> str:
        line = ["generate", str(base), prompt, "--max-tokens", "8", *(["--chat"] if chat else []), *options]
        done = CliRunner().invoke(app, line, catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    record = json.loads(printed("--json"))
    assert (record["text"], record["tokens"], record["prompt_tokens"]) == (text, tokens, len(ids))
    assert printed() == f"{'' if chat else prompt}{text}\n"
    if chat:
        return  # streamed, and ended by a stop string, it is as below
    streamed = json.loads(printed("--json", "--stream"))
    for one in (record, streamed):  # times differ
        assert one.pop("first_ms") > 0 and one.pop("ms_a_token") > 0
    assert streamed == record
    assert printed("--stream") == f"{prompt}{text}\n"
    first = text.split()[0]
    assert json.loads(printed("--json", "--stop", first))["text"] == text.partition(first)[0]
