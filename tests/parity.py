"""`make parity`: our model beside lm-eval's own `hf` backend, on the same weights and the same questions.

Both answer lm-eval's own requests. Compared are every choice's log-likelihood, every pick, the metrics, the
log-likelihood of whole texts, and generated text. The test suite calls `compare` on fewer rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from pipeline import store
from pipeline.evals.score import benchmarks
from pipeline.evals.score.evaluation import Evaluation
from pipeline.evals.score.harness import PipelineLM

CHOICES = (
    "arc",
    "hellaswag",
    "truthfulqa",
    "mmlu_abstract_algebra",
    "mmlu_anatomy",
    "mmlu_astronomy",
    "mmlu_virology",
    "boolq",
)
LOGLIKELIHOOD, ROLLING = 1e-3, 1e-4


@dataclass(frozen=True, slots=True)
class Parity:
    """One benchmark on both sides.

    Attributes:
        apart: largest relative difference of a log-likelihood.
        picks: questions whose pick differs (by log-likelihood, and by it over the choice's length).
        metrics: metric → (ours, the `hf` backend's).
        texts: how many generated texts differ.
    """

    benchmark: str
    documents: int
    requests: int
    apart: float
    picks: int
    metrics: dict[str, tuple[float, float]]
    texts: int = 0

    @property
    def holds(self) -> bool:
        limit = ROLLING if self.benchmark == "c4-loss" else LOGLIKELIHOOD
        same = all(ours == other or self.benchmark == "truthfulqa" for ours, other in self.metrics.values())
        near = all(abs(ours - other) <= 1e-3 for ours, other in self.metrics.values())
        return self.apart <= limit and not self.picks and not self.texts and same and near


def hf(folder: Path, threads: int = 0) -> Any:
    """lm-eval's `hf` backend on the checkpoint in `folder`, fp32 on the CPU."""
    import torch
    from lm_eval.models.huggingface import HFLM

    if threads:
        torch.set_num_threads(threads)
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)


def compare(ours: PipelineLM, reference: Any, name: str, data: Path, limit: int) -> Parity:
    """Asks both models the questions of a benchmark that has choices."""
    evaluation = Evaluation(benchmarks.find(name), data, "lm-eval", limit)
    results, expected = evaluation.evaluate(ours), evaluation.evaluate(reference)
    apart, picks, requests, documents = 0.0, 0, 0, 0
    for task, samples in results["samples"].items():
        for sample, other in zip(samples, expected["samples"][task], strict=True):
            a, b = (np.array([float(r[0]) for r in one["filtered_resps"]]) for one in (sample, other))
            lengths = np.array([max(1, len(arguments[1].lstrip(" "))) for arguments in sample["arguments"]])
            apart = max(apart, float((np.abs(a - b) / np.abs(b)).max()))
            picks += a.argmax() != b.argmax() or (a / lengths).argmax() != (b / lengths).argmax()
            picks += [r[1] for r in sample["filtered_resps"]] != [bool(r[1]) for r in other["filtered_resps"]]
            requests, documents = requests + len(a), documents + 1
    metrics = {
        f"{task} {key}": (value, expected["results"][task][key])
        for task, row in results["results"].items()
        for key, value in row.items()
        if "," in key and isinstance(value, float)
    }
    return Parity(name, documents, requests, apart, int(picks), metrics)


def compare_rolling(ours: PipelineLM, reference: Any, data: Path, limit: int) -> Parity:
    """Whole texts."""
    questions = Evaluation(benchmarks.find("c4-loss"), data, "lm-eval", limit).instances()[
        "loglikelihood_rolling"
    ]
    a = np.array(ours.loglikelihood_rolling(questions))
    b = np.array([reference.loglikelihood_rolling([one], disable_tqdm=True)[0] for one in questions])
    return Parity("c4-loss", len(a), len(a), float((np.abs(a - b) / np.abs(b)).max()), 0, {})


def compare_texts(ours: PipelineLM, reference: Any, data: Path, limit: int, tokens: int = 48) -> Parity:
    """Generated text: GSM8K's questions, few tokens each; the `hf` backend writes one text at a time."""
    questions = Evaluation(benchmarks.find("gsm8k"), data, "lm-eval", limit).instances()["generate_until"]
    for question in questions:
        question.arguments = (question.args[0], {**question.args[1], "max_gen_toks": tokens})
    copies = [
        Instance("generate_until", q.doc, (q.args[0], dict(q.args[1])), 0, q.metadata) for q in questions
    ]
    a, b = ours.generate_until(questions), reference.generate_until(copies, disable_tqdm=True)
    return Parity("gsm8k", len(a), len(a), 0.0, 0, {}, sum(x != y for x, y in zip(a, b, strict=True)))


def main() -> int:
    """Prints one line a benchmark; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, help="an fp32 graph of a base; by default the demo's")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data"))
    )
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--tasks", default=",".join([*CHOICES, "c4-loss", "gsm8k"]))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    graph = arguments.graph or demo_graph()
    reference = hf(store.checkpoint_folder(graph))
    ours = PipelineLM(graph, unchecked=True, journal=False)
    all_hold = True
    for name in arguments.tasks.split(","):
        limit = min(arguments.limit, 20) if name.startswith("mmlu") else arguments.limit
        if name == "c4-loss":
            result = compare_rolling(ours, reference, arguments.data, limit)
        elif name == "gsm8k":
            result = compare_texts(ours, reference, arguments.data, min(limit, 8))
        else:
            result = compare(ours, reference, name, arguments.data, limit)
        all_hold &= result.holds
        print(json.dumps({"holds": result.holds, **asdict(result)}), flush=True)
    return 0 if all_hold else 1


def demo_graph() -> Path:
    """The demo's base graph, made here where it is missing."""
    from pipeline.graphs import export
    from pipeline.models import checkpoint

    return export.export_base(checkpoint.resolve("demo"))


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
