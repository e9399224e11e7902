"""The language model that lm-eval sees: a graph or an engine, its answers computed once and kept."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipeline import store
from pipeline.engines import opening
from pipeline.evals import passed
from pipeline.evals.score import prefixes, tokens
from pipeline.evals.score.batches import Answer, Scorer, ScoringError, Work
from pipeline.evals.score.journal import Journal
from pipeline.evals.score.questions import Progress, Questions, groups, windows
from pipeline.evals.score.words import Pair, TokenPair, Words
from pipeline.models import identity, tokenizer
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.runner import Runner

GENERATED_ROWS = 8
"""Texts that are written side by side."""


@register_model("pipeline")
class PipelineLM(Words):
    """An artefact under lm-eval: `--model pipeline --model_args artefact=graphs/…/base.fp32.onnx`.

    Args:
        artefact: a graph or an engine whose check has passed; or a merged graph, whose variants are scored in one pass.
        protocol: 'lm-eval' or 'v1' (no BOS).
        batch_tokens: tokens of one forward pass.
        memory_mb: of the prefix cache.
        reuse: False computes each request whole.
        threads: of the CPU; 0 is one a core.
        unchecked: take an artefact that has passed no check.
        fresh: forget the answers that earlier runs kept.
        journal: False keeps no answers (for measuring).

    Raises:
        UserError: the artefact is missing, unchecked, or lies beside another model's tokenizer.
    """

    def __init__(
        self,
        artefact: str | Path,
        protocol: str = "lm-eval",
        batch_tokens: int = 2048,
        memory_mb: int = 1024,
        reuse: bool = True,
        threads: int = 0,
        unchecked: bool = False,
        fresh: bool = False,
        journal: bool = True,
        **_: Any,
    ) -> None:
        self.path = Path(artefact)
        self.variants = passed.variants(self.path, unchecked)
        super().__init__(store.checkpoint_folder(self.path), protocol)
        self.threads, self.batch_tokens, self.memory, self.reuse = (
            threads,
            batch_tokens,
            memory_mb << 20,
            reuse,
        )
        self.journals = {
            head: Journal(passed.journal_path(path, digest, protocol) if journal else None, fresh)
            for head, (path, digest) in self.variants.items()
        }
        self.progress: Progress | None = None

    # ---- what runs --------------------------------------------------------------------------------------------------

    @cached_property
    def runner(self) -> Runner:
        """Opened when the first question without an answer comes."""
        return opening.open_runner(self.path, threads=self.threads)

    @cached_property
    def scorer(self) -> Scorer:
        reuse = self.reuse and (self.runner.has_cache or passed.has_no_attention(self.path))
        return Scorer(self.runner, self.batch_tokens, self.memory, reuse)

    @property
    def work(self) -> Work:
        """What has gone through the model so far."""
        return self.scorer.work if "scorer" in self.__dict__ else Work()

    def close(self) -> None:
        """Frees the runner and closes the journals."""
        for journal in self.journals.values():
            journal.close()
        if "runner" in self.__dict__:
            self.runner.close()

    # ---- what lm-eval asks ------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002 - lm-eval's signature
        """(log-likelihood in nats, greedy?) of each request's (context, continuation).

        Raises:
            ScoringError: some documents failed; all others' answers are kept.
        """
        keys = [Journal.key("loglikelihood", *request.args) for request in requests]
        asked = Questions(self.journals, keys, requests, self.progress)
        with asked:
            ordered = sorted({request.args for request in requests})  # equal beginnings side by side
            parts = list(windows(ordered))
            wanted = [
                part
                for part in parts
                if any(Journal.key("loglikelihood", *pair) in asked.missing for pair in part)
            ]
            for part, encoded in zip(wanted, tokens.windows(self, wanted), strict=True):
                self._score(part, encoded, asked)
        return [(answer[0], bool(answer[1])) for answer in asked.answers()]

    def _score(self, part: list[Pair], encoded: list[TokenPair], asked: Questions) -> None:
        """Computes the answers of a window that are not there yet."""
        keys, requests = list[str](), list[prefixes.Request]()
        for pair, (context, continuation) in zip(part, encoded, strict=True):
            if (key := Journal.key("loglikelihood", *pair)) not in asked.missing:
                continue
            try:
                requests.append(prefixes.request(context, continuation, self.max_length))
                keys.append(key)
            except ValueError as error:
                asked.take(key, ScoringError(str(error)))
        self.scorer.run(requests, lambda number, answer: asked.take(keys[number], answer))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-likelihood of each whole text, in nats: disjoint windows, each token predicted once.

        Raises:
            ScoringError: as `loglikelihood`.
        """
        return [answer[0] for answer in self.rolling(requests)]

    def rolling(self, requests: list[Instance]) -> list[tuple[float, int]]:
        """(log-likelihood in nats, number of tokens predicted) of each whole text."""
        keys = [Journal.key("rolling", *request.args) for request in requests]
        asked = Questions(self.journals, keys, requests, self.progress)
        with asked:
            whole = {
                key: request.args[0]
                for key, request in zip(keys, requests, strict=True)
                if key in asked.missing
            }
            for group in groups(list(whole), lambda key: len(whole[key])):
                self._roll(group, whole, asked)
        return [(answer[0], answer[1]) for answer in asked.answers()]

    def _roll(self, keys: list[str], whole: dict[str, str], asked: Questions) -> None:
        owners, pieces = list[str](), list[prefixes.Request]()
        for key in keys:
            stream = self.tok_encode(whole[key])
            cut = map(
                make_disjoint_window,
                get_rolling_token_windows(stream, self.prefix_token_id, self.max_length, 1),
            )
            mine = [prefixes.request(context, continuation, self.max_length) for context, continuation in cut]
            pieces += mine
            owners += [key] * len(mine)
            if not mine:
                asked.take(key, ScoringError("the text has no token"))
        left, counts = Counter(owners), Counter[str]()
        for owner, piece in zip(owners, pieces, strict=True):
            counts[owner] += len(piece.targets)
        found: dict[str, list[Answer | ScoringError]] = {key: [] for key in keys}

        def done(number: int, answer: Answer | ScoringError) -> None:
            key = owners[number]
            found[key].append(answer)
            left[key] -= 1
            if not left[key]:
                asked.take(key, _sum(found[key], counts[key]))

        self.scorer.run(pieces, done)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The greedy continuation of each context up to its stop strings, as the `hf` backend cuts it.

        Raises:
            UserError: sampling is asked for, or the graph has no cache to generate with.
            ScoringError: as `loglikelihood`.
        """
        keys = [
            Journal.key("generate", request.args[0], repr(sorted(request.args[1].items())))
            for request in requests
        ]
        asked = Questions(self.journals, keys, requests, self.progress)
        with asked:
            alike: dict[str, dict[str, Instance]] = {}
            for key, request in zip(keys, requests, strict=True):
                if key in asked.missing:
                    alike.setdefault(repr(sorted(request.args[1].items())), {})[key] = request
            for group in alike.values():
                self._generate(group, asked)
        return [answer[0] for answer in asked.answers()]

    def _generate(self, group: dict[str, Instance], asked: Questions) -> None:
        """Texts with the same settings, side by side in batches of like length."""
        if not self.runner.has_cache and not passed.has_no_attention(self.path):
            raise passed.no_cache(self.path)
        settings: Any = normalize_gen_kwargs(next(iter(group.values())).args[1], 256)
        passed.only_greedy(settings)
        until = handle_stop_sequences(
            settings["until"], self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        )
        room = self.max_length - settings["max_gen_toks"]
        passed.has_room(room, self.max_length)
        prompts = {key: self.tok_encode(request.args[0])[-room:] for key, request in group.items()}
        order = sorted(prompts, key=lambda key: -len(prompts[key]))
        stop = tokenizer.stop_tokens(self.folder)

        def ends(text: list[int]) -> bool:
            tail = self.tok_decode(text[-64:], skip_special_tokens=False)
            return text[-1] in stop or any(term and term in tail for term in until)

        for row in greedy_batch(
            self.runner, [prompts[key] for key in order], settings["max_gen_toks"], ends, GENERATED_ROWS
        ):
            key = order[row.number]
            if row.error is not None:  # the backend's own; the documents are named at the end of the run
                asked.take(key, ScoringError(" ".join(str(row.error).split())))
            else:
                asked.keep(key, {"": [postprocess_generated_text(self.tok_decode(row.tokens), until, None)]})

    # ---- what lm-eval wants to know ---------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return self.folder.resolve().name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        return {
            "artefact": str(self.path),
            "sha256": {head: digest for head, (_, digest) in self.variants.items()},
            "protocol": self.protocol,
            "tokenizer": identity.tokenizer_digest(self.folder),
            "max_length": self.max_length,
        }


def _sum(answers: list[Answer | ScoringError], count: int) -> Any:
    """(sum of the windows' log-likelihoods, tokens) of each head, or the first window's error."""
    for answer in answers:
        if isinstance(answer, ScoringError):
            return answer
    return {
        head: (sum(a[head][0] for a in answers if not isinstance(a, ScoringError)), count)
        for head in answers[0]
    }  # type: ignore[union-attr]
