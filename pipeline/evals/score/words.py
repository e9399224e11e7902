"""Texts → tokens, as lm-eval's `hf` backend makes them.

That backend decides on the tokenizer's own BOS, where the context ends and the continuation begins, and which
token stands before an empty context.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, resolve_max_length

from pipeline import store
from pipeline.models import tokenizer
from pipeline.models.config import read_config
from pipeline.models.tokenizer import CheckpointTokenizer
from pipeline.types import UserError

TextPair = tuple[str, str]
"""(context, continuation)."""
TokenPair = tuple[list[int], list[int]]
"""(tokens of the context, tokens of the continuation)."""

PROTOCOLS = ("lm-eval", "v1")
"""lm-eval: the harness of today, the tokenizer's own BOS rule. v1: Open LLM Leaderboard v1, never a BOS."""
DEFAULT_WINDOW = 2048
"""Tokens of the window where config.json does not say, as in lm-eval."""


class TokenizerLM(TemplateLM):
    """A model's tokenizer, as a language model that answers with the tokens of its questions.

    Args:
        folder: where config.json and the tokenizer are.
        protocol: one of PROTOCOLS.
        project: where the tokens of requests are kept; by default the folder's own.

    Raises:
        UserError: the protocol is unknown.
    """

    def __init__(self, folder: Path, protocol: str = "lm-eval", project: store.Project | None = None) -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise UserError(f"--protocol {protocol!r} is unknown; choose from {', '.join(PROTOCOLS)}")
        self.folder, self.protocol = folder, protocol
        self.project = project or store.Project.of(folder / "config.json")
        self._encode = lru_cache(maxsize=64)(self._encode_now)  # the choices of a question share its context

    @property
    def requests(self) -> Path:
        """The folder of the tokens of requests."""
        return self.project.requests(self.folder.resolve().name)

    @cached_property
    def tokenizer(self) -> CheckpointTokenizer:  # type: ignore[override]
        """The tokenizer, whose ids are transformers'."""
        return tokenizer.load(self.folder)

    @cached_property
    def max_length(self) -> int:
        """Tokens of the model's window."""
        config = SimpleNamespace(**read_config(self.folder))
        return int(resolve_max_length(config, default=DEFAULT_WINDOW))

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.tokenizer.eos_token_id
        if token is None:
            raise UserError(
                f"{self.folder}: the tokenizer names no eos_token; add it to tokenizer_config.json"
            )
        return token

    @cached_property
    def prefix_token_id(self) -> int:
        """The token that stands before an empty context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; by default with the special tokens that the protocol adds."""
        return list(self._encode(string, add_special_tokens))

    def _encode_now(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            has_bos = has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = self.protocol != "v1" and not has_bos
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def tok_decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def encode_pairs(self, pairs: list[TextPair]) -> list[TokenPair]:
        """The tokens of each pair, by lm-eval's own rules.

        A pair that those rules cannot take (nothing to predict) comes out with an empty continuation.
        """
        return [self._encode_one(pair) for pair in pairs]

    def _encode_one(self, pair: TextPair) -> TokenPair:
        questions = [Instance("loglikelihood", {}, pair, 0)]
        try:
            (tokens,) = TemplateLM.loglikelihood(self, questions, disable_tqdm=True)
        except IndexError:  # lm-eval reads the first token of a continuation that has none
            return [self.prefix_token_id], []
        context, continuation = tokens  # `_loglikelihood_tokens` below gives tokens, not numbers
        return context, continuation

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
        return [(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Not there: a tokenizer predicts nothing."""
        raise NotImplementedError("a tokenizer predicts nothing")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not there: a tokenizer writes nothing."""
        raise NotImplementedError("a tokenizer writes nothing")
