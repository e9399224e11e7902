"""The token loss of a model on whole texts (`c4-loss`), in the form of lm-eval's results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from pipeline import store
from pipeline.evals.score import local_data
from pipeline.evals.score.benchmarks import Benchmark
from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.tasks import HUB_ERRORS, HarnessResults, Sources
from pipeline.models.config import read_config
from pipeline.store.records import DataSource
from pipeline.types import UserError, first_line

SPLIT = "validation"
STREAMED = 1000
"""Texts that are taken from the hub where no limit is given."""


@dataclass(frozen=True, slots=True)
class LossTexts:
    """The texts of a token loss.

    Attributes:
        benchmark: its definition.
        texts: those that are scored.
        source: where they came from.
        shots: None; a token loss has no few-shot examples.
    """

    benchmark: Benchmark
    texts: tuple[str, ...]
    source: DataSource
    shots: None = None

    @property
    def sources(self) -> Sources:
        """As `tasks.LoadedTasks` has them."""
        return {self.benchmark.name: {SPLIT: self.source}}

    def instances(self, limit: int | None) -> dict[str, list[Instance]]:
        """The texts as lm-eval's requests."""
        name, kind = self.benchmark.name, "loglikelihood_rolling"
        return {
            kind: [
                Instance(kind, {"text": text}, (text,), 0, (name, number, 1))
                for number, text in enumerate(self.texts[:limit])
            ]
        }

    def evaluate(self, model: LM, limit: int | None) -> HarnessResults:
        """The loss over log V, as lm-eval's results.

        Σ −log p / tokens / ln V (Gromov et al. 2024, §4.2); V is the size of the vocabulary. The standard
        error is that of a ratio of two sums, over documents.
        """
        assert isinstance(model, PipelineLM)  # lm-eval's own backends count no tokens
        name = self.benchmark.name
        answers = model.rolling(self.instances(limit)["loglikelihood_rolling"])
        tokens, nats = sum(count for _, count in answers), -sum(value for value, _ in answers)
        loss, documents = nats / tokens, len(answers)
        squares = sum((-value - loss * count) ** 2 for value, count in answers)
        spread = math.sqrt(squares * documents / max(1, documents - 1))
        scale = math.log(read_config(model.folder)["vocab_size"])
        row = {
            "alias": name,
            "loss,none": loss / scale,
            "loss_stderr,none": spread / tokens / scale,
            "tokens,none": tokens,
        }
        return {
            "results": {name: row},
            "versions": {name: 1},
            "n-shot": {name: 0},
            "samples": {name: [_sample(*numbered) for numbered in enumerate(answers)]},
            "higher_is_better": {name: {"loss": False}},
            "n-samples": {name: {"original": documents, "effective": documents}},
        }

    def complete(self) -> bool:
        """Whether all rows of the published set are there."""
        return self.source.rows == self.source.official_rows


def _sample(number: int, answer: tuple[float, int]) -> HarnessResults:
    """One text, in the form of lm-eval's samples."""
    return {
        "doc_id": number,
        "doc": {"id": number},
        "loglikelihood": answer[0],
        "tokens": answer[1],
        "filtered_resps": [],
        "arguments": [],
    }


def load(benchmark: Benchmark, data: Path | None, limit: int | None) -> LossTexts:
    """Reads the texts of a benchmark.

    Args:
        benchmark: its definition.
        data: folder of local rows; None streams them from the hub.
        limit: texts at most.

    Raises:
        UserError: texts are missing, malformed, or cannot be fetched.
    """
    definition = benchmark.parts[0].definition
    split = definition.data[SPLIT]
    if data is None and not split.file.startswith("./"):
        texts = _stream(split.home, limit)
        digest = store.text_digest("\n".join(texts))
        source = DataSource(file=split.home, rows=len(texts), official_rows=split.rows, sha256=digest)
        return LossTexts(benchmark, texts, source)
    file = local_data.require(benchmark, benchmark.parts[0], SPLIT, data or Path())
    rows = local_data.read(file, definition.columns, "text")
    column = definition.columns[0]
    texts = tuple(str(row[column]) for row in rows[:limit])
    return LossTexts(benchmark, texts, local_data.source(file, len(rows), split.rows))


def _stream(home: str, limit: int | None) -> tuple[str, ...]:
    """The first texts of a dataset of the hub, streamed: C4 is never fetched whole."""
    import datasets

    name, _, configuration = home.partition(", ")
    try:
        rows = datasets.load_dataset(name, configuration, split=SPLIT, streaming=True)
        return tuple(row["text"] for row in rows.take(limit or STREAMED))
    except (*HUB_ERRORS, ValueError) as error:
        raise UserError(
            f"cannot fetch {home} from the hub ({first_line(error)}); "
            "pass --data DIR with c4/validation.jsonl"
        ) from None
