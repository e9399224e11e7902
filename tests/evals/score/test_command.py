"""lm-eval's command line, as it is parsed by lm-eval itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lm_eval._cli.harness import HarnessCLI

from pipeline.evals.score import command
from pipeline.types import UserError

MODEL = ("--model", "pipeline", "--tasks", "arc_easy")
ARTEFACT = "artefact=graphs/m/base.fp32.onnx"


def checked(*arguments: str) -> None:
    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        command.check(HarnessCLI().parse_args())
    finally:
        sys.argv = before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--model_args", f"{ARTEFACT},unchecked=True,threads=2"),
        ("--model_args", ARTEFACT, "protocol=v1"),
        ("--model_args", ARTEFACT, "--gen_kwargs", "max_gen_toks=5,do_sample=False"),
        ("--model_args", ARTEFACT, "--metadata", '{"max_seq_lengths": [64], "my_own": 1}'),
    ],
)
def test_known_arguments_pass(arguments: tuple[str, ...]) -> None:
    checked(*MODEL, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model_args", f"{ARTEFACT},unchekced=True"), r"no 'unchekced'; did you mean unchecked\?"),
        (("--model_args", "artifact=x.onnx"), r"no 'artifact'; did you mean artefact\?"),
        (("--model_args", ARTEFACT, "thread=3"), r"no 'thread'; did you mean threads\?"),
        (("--model_args", f"{ARTEFACT},threads=x"), "threads=x is no whole number"),
        (
            ("--gen_kwargs", "max_gen_tok=5"),
            r"no 'max_gen_tok'; did you mean max_gen_toks\?",
        ),
        (("--gen_kwargs", "num_beams=3"), "num_beams=3 is not done here"),
        (("--metadata", '{"max_seq_length": [64]}'), r"did you mean max_seq_lengths\?"),
        (("--metadata", '{"tokeniser": "x"}'), r"did you mean tokenizer\?"),
    ],
)
def test_misspelt_arguments_are_refused_before_anything_runs(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        checked(*MODEL, *arguments)
    assert "\n" not in str(caught.value)


def test_other_models_are_lm_evals_own_business(workdir: Path) -> None:
    checked("--model", "hf", "--model_args", "pretrained=gpt2,unchekced=True", "--tasks", "arc_easy")
    checked("ls", "tasks")
