"""`make bench-score`: how much less goes through the model than with lm-eval's backends, and how much faster.

Two measures. Input tokens are counted without a model, and so without noise. Documents a second come from one
interleaved run: each round gives the same few documents to every contestant; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from rich.console import Console
from rich.table import Table

from pipeline import store
from pipeline.evals.score import benchmarks, prefixes, questions, tokens
from pipeline.evals.score.evaluation import Evaluation
from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.scorer import Scorer, Work
from pipeline.evals.score.words import TextPair
from pipeline.graphs import variants
from pipeline.runtime.cache import Array, Cache
from pipeline.runtime.runner import Pass, Runner, TensorInfo
from tests.parity import demo_graph, hf

AIMS = {"arc": 0.29, "hellaswag": 0.27, "truthfulqa": 0.07, "mmlu": 0.15}
"""Input tokens against the `hf` backend; the counts behind them are of the whole sets."""
BOOLQ_AIM = 0.5
"""Of one forward pass per choice."""
SPEED_AIMS = {"arc": 4.0, "hellaswag": 3.0, "truthfulqa": 4.0, "mmlu": 4.0}


class Blank(Runner):
    """A runner that computes nothing: it shows what a real one would be given."""

    def __init__(self, like: Runner) -> None:
        logits = TensorInfo(np.dtype(np.float32), ("B", "K", 1 << 17))
        self.path, self.outputs = like.path, {"logits": logits}
        self.inputs = {name: info for name, info in like.inputs.items() if not name.startswith("past_")}
        self.inputs["past_key_values.0.key"] = TensorInfo(np.dtype(np.int8), ("B", 1, "P", 1))
        self.bytes = like.cache_bytes

    @property
    def cache_bytes(self) -> int:
        return self.bytes

    def infer(self, feeds: Any, wanted: list[str] | None = None) -> dict[str, Array]:
        raise NotImplementedError("a blank runner has nothing to infer")

    def step(self, one: Pass, keep_cache: bool = True) -> tuple[dict[str, Array], Cache | None]:
        cache = {"past_key_values.0.key": np.zeros((one.rows, 1, one.tokens, 1), np.int8)}
        logits = {"": np.broadcast_to(np.float32(0), (*one.wanted.shape, 1 << 17))}
        return logits, self.cache_of(cache, one.rows, one.tokens) if keep_cache else None


def counted(model: PipelineLM, pairs: list[TextPair], batch_tokens: int = 2048) -> tuple[Work, int, int]:
    """(what ours puts through, tokens of the `hf` backend, tokens of one forward pass per choice)."""
    scorer = Scorer(Blank(model.runner), batch_tokens)
    distinct: dict[bytes, int] = {}
    each = 0
    texts = list(questions.windows(sorted(set(pairs))))
    for encoded in tokens.windows(model, texts):
        requests = [
            prefixes.request(context, continuation, model.max_length) for context, continuation in encoded
        ]
        scorer.run(requests, lambda *_: None)
        for request in requests:  # HFLM's Collator: equal context + continuation[:-1] is one forward pass
            distinct[request.tokens.tobytes()] = len(request.tokens)
            each += len(request.tokens)
    return scorer.work, sum(distinct.values()), each


def count(model: PipelineLM, data: Path, names: list[str], limit: int | None) -> Table:
    """Input tokens of whole benchmarks, as far as `data` holds them."""
    rows = Table(title=f"input tokens put through the model ({data}{f', limit {limit}' if limit else ''})")
    for heading in (
        "benchmark",
        "documents",
        "requests",
        "ours",
        "padding",
        "passes",
        "hf",
        "ours / hf",
        "aim",
        "per choice",
        "ours / that",
    ):
        rows.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        evaluation = Evaluation(benchmarks.find(name), data, "lm-eval", limit)
        requests = evaluation.instances()["loglikelihood"]
        work, hf_tokens, each = counted(model, [request.args for request in requests])
        ours = work.tokens + work.padding
        documents = len({(request.task_name, request.doc_id) for request in requests})
        aim = f"{AIMS[name]:.2f}" if name in AIMS else ""
        against = f"{ours / each:.3f}" + (f" (aim {BOOLQ_AIM})" if name == "boolq" else "")
        rows.add_row(
            name,
            str(documents),
            f"{len(requests):,}",
            f"{ours:,}",
            f"{work.padding / ours:.1%}",
            f"{work.passes:,}",
            f"{hf_tokens:,}",
            f"{ours / hf_tokens:.3f}",
            aim,
            f"{each:,}",
            against,
        )
    return rows


def race(
    model: PipelineLM,
    data: Path,
    name: str,
    documents: int,
    a_round: int,
    threads: int,
    also: tuple[str, ...],
) -> list[str]:
    """Documents a second of each contestant, and the median of its rounds' ratios to ours."""
    whole = name if name != "mmlu" else "mmlu_anatomy"
    questions = Evaluation(benchmarks.find(whole), data, "lm-eval", documents).instances()["loglikelihood"]
    by_document: dict[int, list[Instance]] = {}
    for question in questions:
        by_document.setdefault(question.doc_id or 0, []).append(question)
    groups = list(by_document.values())
    rounds = [[q for g in groups[k : k + a_round] for q in g] for k in range(0, len(groups), a_round)]
    contestants = {"ours": model, **{key: _contestant(key, model, threads) for key in also}}
    _choose_batch(contestants, rounds[0])
    seconds: dict[str, list[float]] = {key: [] for key in contestants}
    for number, questions in enumerate(rounds):
        order = (
            list(contestants)[number % len(contestants) :] + list(contestants)[: number % len(contestants)]
        )
        for key in order:
            seconds[key].append(
                _timed(
                    lambda key=key, questions=questions: contestants[key].loglikelihood(
                        questions, disable_tqdm=True
                    )
                )
            )
    rows = []
    for key, own in seconds.items():
        ratios = [other / ours for other, ours in zip(own, seconds["ours"], strict=True)]
        rate = statistics.median(len(groups[:a_round]) / s for s in own)
        aim = f"aim {SPEED_AIMS[name]:.0f}" if name in SPEED_AIMS and key != "ours" else ""
        rows.append(
            f"{name:12} {key:22} {rate:7.3f} documents/s   "
            f"ours is {statistics.median(ratios):5.2f} times as fast  {aim}"
        )
    return rows


def _contestant(key: str, model: PipelineLM, threads: int) -> Any:
    if key == "hf":
        return hf(model.folder, threads)
    from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM

    return ONNXRuntimeLM(pretrained=str(variants.cut_all_logits(model.path)), max_length=model.max_length)


def _choose_batch(contestants: dict[str, Any], questions: list[Instance]) -> None:
    """Sets the `hf` backend's faster batch size, 1 or 8; `auto` first tries 64 rows of the whole window."""
    if "hf" not in contestants:
        return
    seconds = {}
    for size in (1, 8):
        contestants["hf"].batch_size_per_gpu = size
        seconds[size] = _timed(lambda: contestants["hf"].loglikelihood(questions, disable_tqdm=True))
    best = min(seconds, key=lambda size: seconds[size])
    contestants["hf"].batch_size_per_gpu = best
    contestants[f"hf (batch size {best})"] = contestants.pop("hf")


def _timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def together(base: Path, data: Path, documents: int, threads: int) -> str:
    """Base and 12 variants: one merged graph against 13 runs, the same questions of ARC, answers compared."""
    from pipeline.graphs import merge
    from pipeline.types import SkipSet, count_of

    layers = store.graph_sidecar(base).num_layers
    counts = [count_of(frac, layers) for frac in (0.1, 0.25, 0.33)]
    sets = [SkipSet.of(kind, range(layers - n, layers)) for kind in ("attn", "mlp", "block") for n in counts]
    sets += [SkipSet.of("attn", range(layers - 1 - n, layers - 1)) for n in counts]
    graphs = [base, *(variants.cut(base, chosen) for chosen in sets)]
    questions = Evaluation(benchmarks.find("arc"), data, "lm-eval", documents).instances()["loglikelihood"]
    options: dict[str, Any] = {"unchecked": True, "journal": False, "threads": threads}
    merged = PipelineLM(merge.merge(graphs), **options)
    rounds = [questions[k : k + 8] for k in range(0, len(questions), 8)]  # two documents each
    _ = merged.runner
    merged.loglikelihood(rounds[0])
    spent, apart, whole = 0.0, 0.0, [0.0] * len(rounds[1:])
    for number, part in enumerate(rounds[1:]):
        whole[number] = _timed(lambda part=part: merged.loglikelihood(part))
    for graph in graphs:
        one = PipelineLM(graph, **options)
        _ = one.runner
        one.loglikelihood(rounds[0])
        for part in rounds[1:]:
            spent += _timed(lambda one=one, part=part: one.loglikelihood(part))
        name = store.variant(graph).name
        alone, shared = one.journals[""].answers, merged.journals[name].answers
        apart = max(apart, *(abs(alone[key][0] - shared[key][0]) / abs(alone[key][0]) for key in alone))
        one.close()
    return (
        f"together     {len(graphs)} variants, {len(questions) // 4 - 2} documents of arc: "
        f"{sum(whole):.1f} s against {spent:.1f} s for {len(graphs)} runs: {sum(whole) / spent:.3f} "
        f"(aim 0.30); answers apart by {apart:.1e} at most"
    )


def main() -> int:
    """Prints both measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data"))
    )
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--round", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", default="arc,hellaswag,truthfulqa,mmlu,boolq")
    parser.add_argument("--only", choices=("tokens", "race", "together"))
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    console = Console(width=170)
    model = PipelineLM(chosen.graph or demo_graph(), unchecked=True, journal=False, threads=chosen.threads)
    names = chosen.tasks.split(",")
    if chosen.only in (None, "tokens"):
        console.print(count(model, chosen.data, names, None))
    for name in names if chosen.only in (None, "race") else ():
        for row in race(
            model, chosen.data, name, chosen.documents, chosen.round, chosen.threads, ("hf", "onnxruntime")
        ):
            print(row, flush=True)
    if chosen.only in (None, "together"):
        print(together(model.path, chosen.data, min(chosen.documents, 8), chosen.threads), flush=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
