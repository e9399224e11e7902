"""Models that LLM-Drop has dropped sublayers of: its lists in config.json, with and without the weights.

The right value is transformers' model on the user's own folder, with modules of nought for these sublayers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import store
from pipeline.models.config import read_config
from pipeline.models.costs import flops
from pipeline.types import Failed, SkipSet, UserError
from tests import tiny
from tests.commands import run
from tests.truth import graph_logits, loaded, logits_of, relative_error

AUTO_MAP = {"AutoModelForCausalLM": "modeling_dropped_mistral.MistralForCausalLM"}
LISTS: dict[str, Any] = {"drop_attn_list": [3, 1], "drop_mlp_list": [2], "auto_map": AUTO_MAP}
DROPPED = SkipSet((1, 3), (2,))
NAME = "attn1_3+mlp2"
IDS = np.random.default_rng(0).integers(3, tiny.WORDS, (2, 20))


class ZeroAttention(nn.Module):
    """No attention; written apart from the product's."""

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_options: Any) -> tuple[torch.Tensor, None]:
        """[B, T, C] → noughts."""
        return torch.zeros_like(hidden_states), None


class ZeroMlp(nn.Module):
    """No MLP."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, T, C] → noughts."""
        return torch.zeros_like(hidden_states)


def edited(folder: Path, **changes: Any) -> Path:
    """Changes keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.fixture
def dropped(workdir: Path) -> Path:
    """A whole model whose config.json drops three sublayers."""
    folder = tiny.checkpoint(
        workdir / "hf" / "dropped", "mistral", num_hidden_layers=4, sliding_window=None, vocab_size=tiny.WORDS
    )
    return edited(tiny.tokenizer(folder), **LISTS)


def truth(folder: Path, skip: SkipSet) -> np.ndarray:
    """transformers' logits [B, T, V] without the sublayers of a skip set."""
    model = loaded(folder)
    for i in skip.attention:
        model.model.layers[i].self_attn = ZeroAttention()
    for i in skip.mlp:
        model.model.layers[i].mlp = ZeroMlp()
    return logits_of(model, IDS)


def error(graph: Path, expected: np.ndarray) -> float:
    """max|a - b| / rms(b) of a graph's logits at every position."""
    return relative_error(graph_logits(graph, IDS), expected)


def remove_weights(folder: Path, *parts: str) -> None:
    """Takes the tensors whose names have one of these parts out of the file."""
    file = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not any(part in k for part in parts)}
    save_file(kept, file, metadata={"format": "pt"})


GONE = [f"layers.{i}.{part}" for i in (1, 3) for part in ("self_attn.", "input_layernorm")] + [
    f"layers.2.{part}" for part in ("mlp.", "post_attention_layernorm")
]


def test_export_writes_base_and_the_variant_that_config_json_drops(
    dropped: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole, cut = truth(dropped, SkipSet()), truth(dropped, DROPPED)
    graph = Path(run(capsys, "export", "hf/dropped").strip())
    assert graph.name == f"{NAME}.fp32.onnx"
    assert f"drops {NAME}, and so does the graph" in caplog.text
    assert "(auto_map: modeling_dropped_mistral.MistralForCausalLM) is not run" in caplog.text
    assert caplog.text.count("is not run") == 1  # not of the folder that it was copied from, too
    assert error(graph, cut) < 1e-4 < 0.1 < error(graph, whole)
    assert error(graph.with_name("base.fp32.onnx"), whole) < 1e-4
    assert "passed" in run(capsys, "check", graph)


def test_an_explicit_skip_wins(
    dropped: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    graph = Path(run(capsys, "export", "hf/dropped", "--skip", "mlp0").strip())
    assert graph.name == "mlp0.fp32.onnx" and f"drops {NAME}; --skip says mlp0" in caplog.text
    assert error(graph, truth(dropped, SkipSet((), (0,)))) < 1e-4
    assert run(capsys, "export", "hf/dropped", "--skip", "base").strip().endswith("/base.fp32.onnx")


def test_weights_that_are_gone_leave_the_variant_alone(
    dropped: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    expected, smaller = truth(dropped, DROPPED), truth(dropped, DROPPED | SkipSet((0,)))
    remove_weights(dropped, *GONE)
    graph = Path(run(capsys, "export", "hf/dropped").strip())
    record = store.graph_sidecar(graph)
    assert graph.name == f"{NAME}.fp32.onnx" and record.skip_set == DROPPED and record.base is None
    assert not graph.with_name("base.fp32.onnx").exists()
    assert error(graph, expected) < 1e-4
    assert "passed" in run(capsys, "check", graph)
    caplog.clear()
    assert run(capsys, "export", "dropped", "--skip", NAME).strip() == str(graph)
    assert "nothing to do" in caplog.text
    other = Path(run(capsys, "export", "dropped", "--skip", "attn0-1_3+mlp2", "--head", "all").strip())
    assert other.name == "attn0-1_3+mlp2.fp32.all.onnx"
    assert error(other.with_name("attn0-1_3+mlp2.fp32.onnx"), smaller) < 1e-4


@pytest.mark.parametrize(("skip", "needed"), [("base", NAME), ("attn1+mlp2", "attn3"), ("mlp0", NAME)])
def test_what_needs_weights_that_are_gone_is_refused(
    skip: str,
    needed: str,
    dropped: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    remove_weights(dropped, *GONE)
    with pytest.raises(UserError, match=rf"weights of {needed.replace('+', '.')} are gone .* and {skip[:4]}"):
        run(capsys, "export", "hf/dropped", "--skip", skip)
    assert "written" not in caplog.text and "takes it whole" not in caplog.text
    assert not Path("graphs").exists()


@pytest.mark.parametrize(
    "parts",
    [
        ["layers.1.self_attn.k_proj"],
        ["layers.3.input_layernorm", "layers.2.mlp.up_proj"],
        [*GONE[:2], "layers.3.self_attn.o_proj", "layers.2.post_attention_layernorm"],
    ],
    ids=len,
)
def test_sublayers_that_are_partly_gone(
    parts: list[str], dropped: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """They are taken as gone where they are skipped: dropped by config.json, or by --skip."""
    caplog.set_level("INFO")
    expected = truth(dropped, DROPPED)
    remove_weights(dropped, *parts)
    graph = Path(run(capsys, "export", "hf/dropped").strip())
    assert graph.name == f"{NAME}.fp32.onnx" and error(graph, expected) < 1e-4
    assert store.graph_sidecar(graph).base is None and "its weights hold no base" in caplog.text
    assert "passed" in run(capsys, "check", graph)
    edited(dropped, drop_attn_list=None, drop_mlp_list=None).rename("hf/plain")
    graph = Path(run(capsys, "export", "hf/plain", "--skip", NAME).strip())
    assert error(graph, expected) < 1e-4
    for skip in ("base", "attn0"):
        with pytest.raises(UserError, match="graphs/plain"):
            run(capsys, "export", "plain", "--skip", skip)


def test_a_gone_block(dropped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last block, of which nothing is left in the file."""
    edited(dropped, drop_attn_list=[3], drop_mlp_list=[3])
    expected = truth(dropped, SkipSet((3,), (3,)))
    remove_weights(dropped, "layers.3.")
    graph = Path(run(capsys, "export", "hf/dropped").strip())
    assert graph.name == "block3.fp32.onnx" and error(graph, expected) < 1e-4
    with pytest.raises(UserError, match=r"weights of block3 are gone .* --skip block3` leaves them out"):
        run(capsys, "export", "dropped", "--skip", "base")


@pytest.mark.slow  # checks, measures and scores
def test_a_model_without_a_base_is_measured_against_the_largest_variant(
    dropped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ceiling is that of what goes beyond it."""
    remove_weights(dropped, *GONE)
    run(capsys, "export", "hf/dropped")
    graphs = [Path("graphs/dropped") / f"{name}.fp32.onnx" for name in (NAME, "attn0-1_3+mlp2")]
    bench = ("bench", "--sequences", 3, "--lengths", "20", "--json")
    (row,) = json.loads(run(capsys, *bench, graphs[0]))["rows"]
    assert (row["artefact"], row["improvement"], row["ceiling"]) == (str(graphs[0]), 0, 0)
    run(capsys, "export", "dropped", "--skip", "attn0-1_3+mlp2")
    report = json.loads(run(capsys, *bench, graphs[1]))
    own, smaller = report["rows"]
    assert report["conditions"]["against"] == NAME
    assert (own["artefact"], smaller["artefact"]) == tuple(map(str, graphs))
    config = read_config(dropped)
    work = [flops(config, skip, 20) for skip in (DROPPED, DROPPED | SkipSet((0,)))]
    assert own["ceiling"] == 0 and smaller["ceiling"] == pytest.approx(100 * (1 - work[1] / work[0]))
    assert "against attn1_3+mlp2" in run(capsys, *bench[:-1], graphs[1])
    assert "smoke-loss" in run(capsys, "score", graphs[1], "--tasks", "smoke-loss", "--limit", 2)
    run(capsys, "report")
    assert f"saved over {NAME}, for the checkpoint" in Path("evals/report/index.html").read_text()


@pytest.mark.slow  # a sweep's jobs are processes
def test_a_sweep_of_a_model_without_a_base_says_why(
    dropped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_weights(dropped, *GONE)
    Path("r.toml").write_text(
        'models = ["hf/dropped"]\nkinds = ["attn"]\nfractions = [0.25]\nselectors = ["last"]\n'
        'precisions = ["fp32"]\nstages = ["export", "check"]\n'
    )
    with pytest.raises(Failed, match="1 of 2 jobs failed"):
        run(capsys, "sweep", "r.toml")
    said = capsys.readouterr().out
    assert f"the weights of {NAME} are gone" in said and f"`pipeline export hf/dropped --skip {NAME}`" in said
    assert not Path("graphs").exists()


def test_weights_that_are_missing_without_a_list_are_refused(
    dropped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(dropped, drop_attn_list=[], drop_mlp_list=None)
    remove_weights(dropped, *GONE)
    with pytest.raises(UserError, match=r"implies the weight .*layers\.1.*, but the checkpoint lacks it"):
        run(capsys, "export", "hf/dropped")


def test_booleans_mean_the_same(dropped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What LLM-Drop's own configuration class saves."""
    edited(dropped, drop_attn_list=[False, True, False, True], drop_mlp_list=[False, False, True, False])
    assert run(capsys, "export", "hf/dropped").strip().endswith(f"/{NAME}.fp32.onnx")
    edited(dropped, drop_attn_list=[False] * 4, drop_mlp_list=[False] * 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([4], "drop_attn_list names layer 4; the model has layers 0-3"),
        ([-1], "drop_attn_list names layer -1"),
        (["1"], "not a list of layers"),
        ([1.0], "not a list of layers"),
        ({"1": True}, "not a list of layers"),
        ([True], "has 1 booleans for 4 layers"),
    ],
)
def test_lists_of_no_layers(
    value: object, message: str, dropped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(dropped, drop_attn_list=value)
    with pytest.raises(UserError, match=message):
        run(capsys, "export", "hf/dropped")


def test_code_of_an_architecture_that_is_not_authored_is_refused(
    dropped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(dropped, model_type="mistral_dropped", drop_attn_list=None, drop_mlp_list=None)
    with pytest.raises(UserError, match=r"architecture 'mistral_dropped' is not authored here"):
        run(capsys, "export", "hf/dropped")
