"""Texts → tokens, as lm-eval's `hf` backend makes them: the tokenizer's own BOS rule, the boundary between context and
continuation, the prefix token before an empty context."""

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
from pipeline.types import UserError

Pair = tuple[str, str]
"""(context, continuation)."""
TokenPair = tuple[list[int], list[int]]

PROTOCOLS = ("lm-eval", "v1")
"""lm-eval: the harness of today, the tokenizer's own BOS rule. v1: Open LLM Leaderboard v1, never a BOS."""


class Words(TemplateLM):
    """A model's tokenizer, as a language model that answers with the tokens it was asked about.

    Args:
        folder: where config and tokenizer lie.
        protocol: whether a text gets the tokenizer's BOS.
    """

    def __init__(self, folder: Path, protocol: str = "lm-eval") -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise UserError(f"--protocol {protocol!r} is unknown; choose from {', '.join(PROTOCOLS)}")
        self.folder, self.protocol = folder, protocol
        self._encode = lru_cache(maxsize=64)(self._encode_now)  # the choices of a question share its context

    @cached_property
    def tokenizer(self) -> Any:  # type: ignore[override]
        return tokenizer.load(self.folder)

    @cached_property
    def max_length(self) -> int:
        """The model's window in tokens."""
        return resolve_max_length(
            SimpleNamespace(**store.read_json(self.folder / "config.json")), default=2048
        )

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @cached_property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self._encode(string, add_special_tokens))

    def _encode_now(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            twice = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = self.protocol != "v1" and not twice
        return self.tokenizer.encode(string, verbose=False, add_special_tokens=add_special_tokens)

    def tok_decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def encode_pairs(self, pairs: list[Pair]) -> list[TokenPair]:
        """(tokens of the context, tokens of the continuation) of each pair, by lm-eval's own rules.

        A pair that those rules cannot take (nothing to predict) comes out with an empty continuation.
        """
        return [self._encode_one(pair) for pair in pairs]

    def _encode_one(self, pair: Pair) -> TokenPair:
        try:
            return TemplateLM.loglikelihood(
                self, [Instance("loglikelihood", {}, pair, 0)], disable_tqdm=True
            )[0]  # type: ignore
        except IndexError:  # lm-eval reads the first token of a continuation that has none
            return [self.prefix_token_id], []

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
        return [(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("a tokenizer predicts nothing")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("a tokenizer writes nothing")
