"""The model that lm-eval sees: a graph or an engine, whose answers are computed once and kept."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipeline import store
from pipeline.engines import opening
from pipeline.evals import passed
from pipeline.evals.score import known, prefixes, tokens
from pipeline.evals.score.generation import GenerationSettings
from pipeline.evals.score.journal import Journal
from pipeline.evals.score.loglikelihoods import Answer, ScoringError
from pipeline.evals.score.questions import ProgressListener, Questions, is_unicode, text_groups, windows
from pipeline.evals.score.scorer import Scorer
from pipeline.evals.score.settings import ModelSettings
from pipeline.evals.score.words import TextPair, TokenizerLM, TokenPair
from pipeline.evals.score.work import Work
from pipeline.models import identity, tokenizer
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.generation.prompts import Prompts
from pipeline.runtime.runner import Runner
from pipeline.types import UserError, first_line

GENERATED_ROWS = 8
"""Texts that are written side by side."""
TAIL = 64
"""Tokens at the end of a text in which stop strings are looked for."""


@register_model("pipeline")
class PipelineLM(TokenizerLM):
    """An artefact under lm-eval: `--model pipeline --model_args artefact=graphs/…/base.fp32.onnx`.

    Args:
        artefact: a graph or an engine whose check has passed; or a merged graph, whose variants are scored in
            one pass.
        settings: how it answers; by default taken from `options`.
        options: `ModelSettings` by name, as lm-eval's command passes them, beside its own.

    Raises:
        UserError: the artefact is missing, unchecked, or lies beside another model's tokenizer; an option is
            unknown or of a wrong type.
    """

    def __init__(
        self, artefact: str | Path = "", settings: ModelSettings | None = None, **options: Any
    ) -> None:
        if not artefact:
            known.refuse_unknown("--model_args", options, ModelSettings.names(), ModelSettings.HARNESS)
            raise UserError("--model_args names no artefact; pass artefact=graphs/…/base.fp32.onnx")
        self.path = Path(artefact)
        self.settings = settings or ModelSettings.of(options)
        protocol, provider = self.settings.protocol, self.settings.provider
        self.variants = passed.variants(self.path, self.settings.unchecked, provider)
        super().__init__(store.checkpoint_folder(self.path), protocol, store.Project.of(self.path))
        self.journals = {
            head: Journal(
                passed.journal_path(path, digest, protocol, provider) if self.settings.journal else None,
                self.settings.fresh,
            )
            for head, (path, digest) in self.variants.items()
        }
        self.progress: ProgressListener | None = None
        self.asked: set[str] = set()
        self._generated = Work()

    # ---- what runs ----------------------------------------------------------------------------------------

    @cached_property
    def runner(self) -> Runner:
        """Opened when the first question without an answer comes."""
        return opening.open_runner(self.path, self.settings.threads, self.settings.provider)

    @cached_property
    def scorer(self) -> Scorer:
        """Made with the runner."""
        reuse = self.settings.reuse and self._can_cache
        return Scorer(self.runner, self.settings.batch_tokens, self.settings.memory_mb << 20, reuse)

    @property
    def _can_cache(self) -> bool:
        return self.runner.has_cache or passed.has_no_attention(self.path)

    @property
    def work(self) -> Work:
        """What has gone through the model in this process."""
        scored = self.scorer.work if "scorer" in self.__dict__ else Work()
        return Work.total([scored, self._generated])

    def work_of_asked(self) -> Work:
        """What the answers to the questions in `asked` took, in this run and in those before it."""
        journal = next(iter(self.journals.values()))
        return Work.total(journal.work[key] for key in self.asked if key in journal.work)

    def close(self) -> None:
        """Frees the runner and closes the journals."""
        for journal in self.journals.values():
            journal.close()
        if "runner" in self.__dict__:
            self.runner.close()

    def _questions(self, keys: list[str], requests: list[Instance]) -> Questions:
        self.asked.update(keys)
        return Questions(self.journals, keys, requests, self.progress, lambda: self.work)

    # ---- log-likelihoods ----------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002 - lm-eval's signature
        """(log-likelihood in nats, greedy?) of each request's (context, continuation).

        Raises:
            ScoringError: some documents failed; all others' answers are kept.
        """
        keys = [_pair_key(request.args) for request in requests]
        with self._questions(keys, requests) as questions:
            readable = {request.args for request in requests if all(map(is_unicode, request.args))}
            ordered = sorted(readable)  # equal beginnings side by side
            texts = [
                window
                for window in windows(ordered)
                if any(_pair_key(pair) in questions.missing for pair in window)
            ]
            for window, pairs in zip(texts, tokens.windows(self, texts), strict=True):
                self._score(window, pairs, questions)
        return [(answer[0], bool(answer[1])) for answer in questions.answers()]

    def _score(self, window: list[TextPair], pairs: list[TokenPair], questions: Questions) -> None:
        """Computes the answers of a window that are not there yet."""
        keys, requests = list[str](), list[prefixes.Request]()
        for texts, (context, continuation) in zip(window, pairs, strict=True):
            if (key := _pair_key(texts)) not in questions.missing:
                continue
            try:
                requests.append(prefixes.request(context, continuation, self.max_length))
                keys.append(key)
            except ValueError as error:
                questions.finish(key, ScoringError(str(error)))
        self.scorer.run(requests, lambda number, outcome: questions.finish(keys[number], outcome))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002 - lm-eval's signature
        """The log-likelihood of each whole text in nats: disjoint windows, each token predicted once.

        Raises:
            ScoringError: as `loglikelihood`.
        """
        return [nats for nats, _ in self.rolling(requests)]

    def rolling(self, requests: list[Instance]) -> list[tuple[float, int]]:
        """(log-likelihood in nats, number of tokens predicted) of each whole text.

        Raises:
            ScoringError: as `loglikelihood`.
        """
        keys = [Journal.key("rolling", *request.args) for request in requests]
        with self._questions(keys, requests) as questions:
            texts = {
                key: request.args[0]
                for key, request in zip(keys, requests, strict=True)
                if key in questions.missing
            }
            for group in text_groups(list(texts), lambda key: len(texts[key])):
                self._roll({key: texts[key] for key in group}, questions)
        return [(answer[0], answer[1]) for answer in questions.answers()]

    def _roll(self, texts: dict[str, str], questions: Questions) -> None:
        """Computes the answers of whole texts, given by key."""
        owners, requests = list[str](), list[prefixes.Request]()
        for key, text in texts.items():
            windows_of_text = self._rolling_requests(text)
            requests += windows_of_text
            owners += [key] * len(windows_of_text)
            if not windows_of_text:
                questions.finish(key, ScoringError("the text has no token"))
        unfinished, counts = Counter(owners), Counter[str]()
        for owner, request in zip(owners, requests, strict=True):
            counts[owner] += len(request.targets)
        outcomes: dict[str, list[Answer | ScoringError]] = {key: [] for key in texts}

        def done(number: int, outcome: Answer | ScoringError) -> None:
            key = owners[number]
            outcomes[key].append(outcome)
            unfinished[key] -= 1
            if not unfinished[key]:
                questions.finish(key, _sum(outcomes[key], counts[key]))

        self.scorer.run(requests, done)

    def _rolling_requests(self, text: str) -> list[prefixes.Request]:
        """One request a window of the text, as lm-eval cuts it."""
        stream = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        pairs = map(make_disjoint_window, stream)
        return [prefixes.request(context, continuation, self.max_length) for context, continuation in pairs]

    # ---- generated text -----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002 - lm-eval's signature
        """The greedy continuation of each context up to its stop strings, as the `hf` backend cuts it.

        Raises:
            UserError: sampling is asked for, or the graph has no cache to generate with.
            ScoringError: as `loglikelihood`.
        """
        keys = [Journal.key("generate", request.args[0], _generation_key(request)) for request in requests]
        with self._questions(keys, requests) as questions:
            alike: dict[str, dict[str, Instance]] = {}
            for key, request in zip(keys, requests, strict=True):
                if key in questions.missing:
                    alike.setdefault(_generation_key(request), {})[key] = request
            for group in alike.values():
                self._generate(group, questions)
        return [answer[0] for answer in questions.answers()]

    def _generate(self, group: dict[str, Instance], questions: Questions) -> None:
        """Writes texts with the same settings, given by key, side by side in batches of like length."""
        if not self._can_cache:
            raise passed.no_cache(self.path)
        settings = GenerationSettings.of(next(iter(group.values())).args[1], self.max_length)
        end_of_text = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(list(settings.until), end_of_text)
        prompts = {key: self._prompt(request.args[0], settings.room) for key, request in group.items()}
        order = sorted(prompts, key=lambda key: -len(prompts[key]))
        stop = tokenizer.stop_tokens(self.folder)

        def is_finished(text: list[int]) -> bool:
            tail = self.tok_decode(text[-TAIL:], skip_special_tokens=False)
            return text[-1] in stop or any(term and term in tail for term in until)

        in_order = [prompts[key] for key in order]
        for row in greedy_batch(self.runner, in_order, settings.max_tokens, is_finished, GENERATED_ROWS):
            key = order[row.number]
            self._generated.tokens += len(row.prompt) + len(row.tokens)
            self._generated.asked += len(row.prompt) + len(row.tokens)
            if row.error is not None:  # the documents are named when the call ends
                questions.finish(key, ScoringError(first_line(row.error)))
            else:
                text = postprocess_generated_text(self.tok_decode(row.tokens), until, None)
                questions.keep(key, {"": [text]})

    def _prompt(self, text: str, room: int) -> list[int]:
        """The last tokens of a context that the window has room for.

        An empty text is its BOS; without one, the token that lm-eval puts before an empty context of a
        log-likelihood. (lm-eval's own `hf` backend raises an IndexError there.)
        """
        return self.tok_encode(text)[-room:] or [self.prefix_token_id]

    # ---- what lm-eval asks of a model ---------------------------------------------------------------------

    @cached_property
    def chats(self) -> Prompts:
        """The model's chat template."""
        return tokenizer.prompts(self.folder)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of chat prompts."""
        return self.folder.resolve().name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation, by the tokenizer's own template."""
        return self.chats.render(chat_history, "begins" if add_generation_prompt else "goes on")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes about the model into `config`."""
        return {
            "artefact": str(self.path),
            "sha256": {head: digest for head, (_, digest) in self.variants.items()},
            "protocol": self.protocol,
            "tokenizer": identity.tokenizer_digest(self.folder),
            "max_length": self.max_length,
        }


def _pair_key(pair: tuple[Any, ...]) -> str:
    return Journal.key("loglikelihood", *pair)


def _generation_key(request: Instance) -> str:
    return repr(sorted(request.args[1].items()))


def _sum(outcomes: list[Answer | ScoringError], count: int) -> dict[str, tuple[float, int]] | ScoringError:
    """Head → (sum of the windows' log-likelihoods, tokens predicted); or the first window's error."""
    answers = list[Answer]()
    for outcome in outcomes:
        if isinstance(outcome, ScoringError):
            return outcome
        answers.append(outcome)
    return {head: (sum(answer[head][0] for answer in answers), count) for head in answers[0]}
