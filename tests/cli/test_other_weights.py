"""A number is of the weights that lie there now: models of one shape, trained on, replaced, moved, damaged.

Every value is compared with transformers on the folder that the user gave.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pipeline import store
from pipeline.evals.score.harness import PipelineLM
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.store import files, weights
from pipeline.store.records import CheckRecord, GraphRecord
from pipeline.types import UserError
from tests import tiny, truth
from tests.commands import run
from tests.exported import as_optimum_exports
from tests.interrupted import every_kill

CONTEXT, WORDS = "The grass of the field is", " green and the sky is blue"
NOT_THESE = "is not what .* was made with"


def train(folder: Path, seed: int) -> Path:
    """A checkpoint of the one shape that all models here have, with its tokenizer."""
    return tiny.tokenizer(tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=3, seed=seed))


def expected_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """[T, V], of transformers."""
    return truth.logits_of(truth.loaded(folder), np.array([ids]))[0].astype(np.float64)


def error(graph: Path, folder: Path) -> float:
    """max |a − b| / rms(b) of a graph's logits beside transformers'."""
    ids = list(np.random.default_rng(0).integers(3, tiny.WORDS, 20))
    return truth.relative_error(truth.graph_logits(graph, np.array([ids]))[0], expected_logits(folder, ids))


def expected_score(folder: Path) -> float:
    """Σ log p of WORDS behind CONTEXT, nats, of transformers."""
    words = AutoTokenizer.from_pretrained(folder)
    before, whole = (words(text, add_special_tokens=False).input_ids for text in (CONTEXT, CONTEXT + WORDS))
    logs = torch.log_softmax(torch.from_numpy(expected_logits(folder, whole)), -1)
    return float(sum(logs[k - 1, whole[k]] for k in range(len(before), len(whole))))


def score(graph: Path) -> float:
    """The same, as `score` asks a graph: from its journal where that answers."""
    model = PipelineLM(graph)
    try:
        return model.loglikelihood([Instance("loglikelihood", {}, (CONTEXT, WORDS), 0)], disable_tqdm=True)[
            0
        ][0]
    finally:
        model.close()


def checked(capsys: pytest.CaptureFixture[str], graph: Path) -> bool:
    """Passes the check; whether it was made now, and not found."""
    (result,) = json.loads(run(capsys, "check", graph, "--json"))
    assert result["passed"]
    return not result["already_checked"]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are known by samples, as those of large models are."""
    monkeypatch.setattr(weights, "WHOLE", 0)
    monkeypatch.setattr(weights, "SAMPLE", 16)


def change_a_row(file: Path) -> None:
    """Other numbers in one row of the embedding, which CONTEXT uses; the date is put back."""
    before = file.stat()
    token = AutoTokenizer.from_pretrained(file.parent)(CONTEXT, add_special_tokens=False).input_ids[-1]
    assert token not in (0, tiny.WORDS // 2, tiny.WORDS - 1)  # where the samples are
    row = load_file(file)["model.embed_tokens.weight"][token] * 3 + 0.5
    begin = checkpoint.open_checkpoint(file.parent).tensors["model.embed_tokens.weight"].offset
    with file.open("r+b") as out:
        out.seek(begin + token * row.nbytes)
        out.write(row.numpy().tobytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_two_runs_in_folders_of_one_name_and_one_trained_on(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 21: neither shares a graph, a check or a score with the other, or with what it was before."""
    folders = [train(Path(name, "merged"), seed) for name, seed in (("run-a", 0), ("run-b", 7))]
    graphs = [Path(run(capsys, "export", folder, "--in-place").strip()) for folder in folders]
    assert store.sha256(graphs[0]) != store.sha256(graphs[1])
    for folder, graph in zip(folders, graphs, strict=True):
        assert checked(capsys, graph) and error(graph, folder) < 1e-4
    for folder, graph in zip(folders, graphs, strict=True):  # the one's check leaves the other's alone
        assert not checked(capsys, graph)
        assert score(graph) == pytest.approx(expected_score(folder), rel=1e-5)
    before, digest = score(graphs[0]), store.sha256(graphs[0])
    train(folders[0], 99)
    with pytest.raises(UserError, match=NOT_THESE):
        score(graphs[0])
    assert Path(run(capsys, "export", folders[0], "--in-place").strip()) == graphs[0]
    assert store.sha256(graphs[0]) != digest
    with pytest.raises(UserError, match="has passed no check"):
        score(graphs[0])
    assert checked(capsys, graphs[0]) and error(graphs[0], folders[0]) < 1e-4
    assert score(graphs[0]) == pytest.approx(expected_score(folders[0]), rel=1e-5) != pytest.approx(before)
    assert score(graphs[1]) == pytest.approx(expected_score(folders[1]), rel=1e-5)


def test_a_folder_that_replaces_one_moved_away(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way that `export` itself advises: nothing of the first model answers for the second."""
    source = train(Path("models/m"), 0)
    graph = Path(run(capsys, "export", source, "--skip", "mlp1").strip())
    assert checked(capsys, graph)
    first, digest = score(graph), store.sha256(graph)
    run(capsys, "calibrate", "m", "--samples", 2, "--length", 16)
    run(capsys, "select", "m", "--count", 1, "--select", "cosine")
    train(source, 5)
    with pytest.raises(UserError, match="has changed since graphs/m was made from it"):
        run(capsys, "export", source)
    Path("graphs/m").rename("graphs/old")
    assert Path(run(capsys, "export", source, "--skip", "mlp1").strip()) == graph
    assert store.sha256(graph) != digest
    with pytest.raises(UserError, match="has passed no check"):
        score(graph)
    with pytest.raises(UserError, match="was measured on other weights"):
        run(capsys, "select", "m", "--count", 1, "--select", "cosine")
    assert checked(capsys, graph) and error(Path("graphs/m/base.fp32.onnx"), source) < 1e-4
    assert score(graph) != pytest.approx(first)


@pytest.mark.usefixtures("sampled")
def test_a_row_that_changed_after_the_check(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No sample sees it, and the date is as before: what was checked was every byte."""
    folder = train(Path("run/m"), 0)
    graph = Path(run(capsys, "export", folder, "--in-place").strip())
    assert checked(capsys, graph) and not checked(capsys, graph)
    before, digest = score(graph), store.sha256(graph)
    change_a_row(folder / "model.safetensors")
    with pytest.raises(UserError, match="has passed no check"):
        score(graph)
    run(capsys, "export", folder, "--in-place")
    assert store.sha256(graph) == digest  # the samples are the same
    assert checked(capsys, graph) and error(graph, folder) < 1e-4
    assert score(graph) == pytest.approx(expected_score(folder), rel=1e-5) != pytest.approx(before)


@pytest.mark.parametrize("way", ["cp -p", "mtime", "mv"])
def test_other_weights_with_the_old_date(workdir: Path, capsys: pytest.CaptureFixture[str], way: str) -> None:
    folder, other = train(Path("run/m"), 0), train(Path("run/other"), 1)
    file, new = folder / "model.safetensors", other / "model.safetensors"
    old = file.stat()
    os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
    graph = Path(run(capsys, "export", folder, "--in-place").strip())
    assert checked(capsys, graph)
    if way == "mv":
        new.rename(file)
    else:
        (shutil.copy2 if way == "cp -p" else shutil.copyfile)(new, file)
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert file.stat().st_mtime_ns == old.st_mtime_ns and file.stat().st_size == old.st_size
    for command in (("score", graph), ("check", graph), ("generate", graph, "a"), ("bench", graph)):
        with pytest.raises(UserError, match=NOT_THESE):
            run(capsys, *command)
    run(capsys, "export", folder, "--in-place")
    assert checked(capsys, graph) and error(graph, folder) < 1e-4
    assert score(graph) == pytest.approx(expected_score(folder), rel=1e-5)


def test_the_same_bytes_with_another_date_stay_checked(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Path(run(capsys, "export", train(Path("run/m"), 0), "--in-place").strip())
    assert checked(capsys, graph)
    os.utime(graph.parent / "model.safetensors")
    os.utime(graph)
    assert not checked(capsys, graph)
    shutil.copytree("run/m", "copy/m", copy_function=shutil.copy2)
    shutil.rmtree("run/m")
    shutil.move("copy/m", "run/m")  # other inodes
    assert not checked(capsys, graph)


def test_a_link_that_points_at_another_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a/step", 0), ("b/step", 1)):
        train(Path(name), seed)
    link = Path("latest")
    link.symlink_to("a/step")
    graph = Path(run(capsys, "export", link, "--in-place").strip())
    assert checked(capsys, graph) and error(graph, Path("a/step")) < 1e-4
    copied = Path(run(capsys, "export", link).strip())
    assert store.graph_sidecar(copied).weights == store.graph_sidecar(graph).weights  # however it came
    link.unlink()
    link.symlink_to("b/step")
    with pytest.raises(UserError, match=r"already holds a model from|has changed since"):
        run(capsys, "export", link)
    graph = Path(run(capsys, "export", link, "--in-place").strip())
    assert checked(capsys, graph) and error(graph, Path("b/step")) < 1e-4
    assert score(graph) == pytest.approx(expected_score(Path("b/step")), rel=1e-5)


COMMANDS: list[Callable[[Path], tuple[object, ...]]] = [
    lambda graph: ("check", graph),
    lambda graph: ("score", graph, "--unchecked"),
    lambda graph: ("bench", graph, "--unchecked"),
    lambda graph: ("generate", graph, "a"),
    lambda graph: ("ship", graph, "--to", "triton", "out", "--unchecked"),
    lambda graph: ("heal", graph),
    lambda graph: ("calibrate", "b", "--runner", graph, "--samples", 2, "--length", 16),
    lambda graph: ("show", graph),
    lambda graph: ("merge", graph, graph.with_name("base.fp32.onnx")),
    lambda graph: ("export", "b", "--skip", "mlp1", "--head", "all"),
]


def test_a_graph_in_another_models_folder_is_refused_by_name(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        run(capsys, "export", train(Path("models", name), seed), "--skip", "mlp1")
    graph = Path("graphs/b/mlp1.fp32.onnx")
    for suffix in (".onnx", ".json"):
        shutil.copy(Path("graphs/a/mlp1.fp32").with_suffix(".fp32" + suffix), graph.with_suffix(suffix))
    for command in COMMANDS[:-1]:
        with pytest.raises(UserError, match=r"graphs/b/model\.safetensors is not what graphs/b/mlp1"):
            run(capsys, *command(graph))
    run(capsys, *COMMANDS[-1](graph))  # what makes the graph makes it again
    assert checked(capsys, graph)


def test_a_result_of_another_project_does_not_count(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for project, seed in (("one", 0), ("two", 1)):
        (workdir / project).mkdir()
        monkeypatch.chdir(workdir / project)
        graph = Path(run(capsys, "export", train(Path("models/m"), seed)).strip())
        if project == "one":
            assert checked(capsys, graph)
            score(graph)
        else:
            shutil.copytree(workdir / "one" / "evals", "evals")
    with pytest.raises(UserError, match="has passed no check"):
        score(graph)
    assert checked(capsys, graph)
    assert score(graph) == pytest.approx(expected_score(Path("models/m")), rel=1e-5)


def test_a_check_speaks_for_the_config_that_it_compared_with(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Path(run(capsys, "export", train(Path("models/m"), 0)).strip())
    assert checked(capsys, graph)
    config = graph.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 0.1}))
    with pytest.raises(UserError, match="has passed no check"):
        score(graph)
    (result,) = json.loads(run(capsys, "check", graph, "--json", code=1))
    assert not result["passed"] and not result["already_checked"]


def test_ship_reads_every_byte(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last kilobyte is overwritten and the date put back; then the kernel's own date too."""
    graph = Path(run(capsys, "export", train(Path("models/m"), 0)).strip())
    assert checked(capsys, graph)
    file = graph.parent / "model.safetensors"
    before, content = file.stat(), file.read_bytes()
    stamp = files.stamp(file)
    file.write_bytes(content[:-1024] + bytes(1024))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    to = ("--to", "triton", "out")
    with pytest.raises(UserError, match=NOT_THESE):
        run(capsys, "ship", graph, *to)
    real = files.stamp
    fake = lambda path: stamp if path.name == file.name else real(path)  # noqa: E731 - a disk that lies
    monkeypatch.setattr(files, "stamp", fake)
    monkeypatch.setattr(weights, "stamp", fake)
    with pytest.raises(UserError, match=r"its bytes are others"):
        run(capsys, "ship", graph, *to)
    with pytest.raises(UserError, match="was damaged"):
        run(capsys, "export", "m", "--verify")
    assert not Path("out").exists()


def test_a_record_of_an_older_version_proves_nothing(
    workdir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    graph = Path(run(capsys, "export", train(Path("models/m"), 0)).strip())
    assert checked(capsys, graph)
    result, sidecar = store.result_of(graph, "check"), store.sidecar_path(graph)
    old = {
        key: value for key, value in json.loads(result.read_text()).items() if key not in ("files", "weights")
    }
    result.write_text(json.dumps(old))
    with pytest.raises(UserError, match="has passed no check"):
        score(graph)
    assert "of an older version, which did not look at the weights' content" in caplog.text
    assert checked(capsys, graph) and not checked(capsys, graph)
    fields = {**json.loads(sidecar.read_text()), "weights": "0" * 64}
    del fields["files"]
    sidecar.write_text(json.dumps(fields))
    assert not checked(capsys, graph)  # it is still read, and its check was of every byte
    caplog.clear()
    run(capsys, "export", "m")
    assert "base.fp32.onnx is of an older version" in caplog.text
    assert weights.is_content(store.graph_sidecar(graph).weights)


def test_graphs_say_whose_they_are(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "export", train(Path("models/m"), 0), "--skip", "mlp1")
    base, cut = Path("graphs/m/base.fp32.onnx"), Path("graphs/m/mlp1.fp32.onnx")
    merged = Path(run(capsys, "merge", base, cut).strip())
    identity = checkpoint.resolve("m").identity
    for graph in (base, cut, merged):
        assert ir.load(graph).metadata_props["weights"] == identity == store.sidecar(graph).weights
    record = store.graph_sidecar(cut)
    assert isinstance(record, GraphRecord) and [file.file for file in record.files] == ["model.safetensors"]
    checked(capsys, cut)
    result = CheckRecord.model_validate_json(store.result_of(cut, "check").read_bytes())
    assert result.files is not None and all(file.sha256 for file in result.files)
    assert {Path(file.file).name for file in result.files} == {"model.safetensors", "config.json"}


def test_a_bench_reads_each_file_once(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two variants at two lengths hashed each variant eight times, and the base fourteen."""
    run(capsys, "export", train(Path("models/m"), 0), "--skip", "mlp1")
    graphs = [Path(run(capsys, "export", "m", "--skip", name).strip()) for name in ("mlp1", "attn2")]
    for graph in (*graphs, graphs[0].with_name("base.fp32.onnx")):
        checked(capsys, graph)
    files._sums.clear()  # as in a new process
    weights._states.clear()
    reads: list[str] = []
    digest = files.hashlib.file_digest  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "hashlib.file_digest", lambda file, name: reads.append(Path(file.name).name) or digest(file, name)
    )
    run(capsys, "bench", *graphs, "--sequences", 2, "--lengths", "5,9")
    assert len(reads) == len(set(reads)), reads
    assert {"mlp1.fp32.onnx", "attn2.fp32.onnx", "base.fp32.onnx"} <= set(reads)
    assert "model.safetensors" not in reads  # its digest is known from the check


def test_the_same_adapter_is_not_taken_for_other_weights(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = train(Path("models/m"), 0)
    graph = Path(run(capsys, "export", source, "--skip", "block1").strip())
    run(capsys, "heal", graph, "--steps", 1, "--batch", 1, "--length", 16, "--rank", 2)
    healed = Path(run(capsys, "export", "m", "--skip", "block1", "--adapter", "heal").strip())
    assert checked(capsys, healed)
    tensors = healed.with_name("block1~heal.safetensors")
    good, before = tensors.read_bytes(), tensors.stat()
    tensors.write_bytes(good[:-100] + b"\xff" * 100)
    os.utime(tensors, ns=(before.st_atime_ns, before.st_mtime_ns))
    for command in COMMANDS[:5]:
        with pytest.raises(UserError, match=r"block1~heal\.safetensors is not what block1~heal\.fp32\.onnx"):
            run(capsys, *command(healed))
    run(
        capsys, "export", "m", "--skip", "block1", "--adapter", "heal"
    )  # merged again, and not taken as it is
    assert tensors.read_bytes() == good and not checked(capsys, healed)
    train(source, 1)
    Path("graphs/m").rename("graphs/old")
    run(capsys, "export", source, "--skip", "block1")
    with pytest.raises(UserError, match="was trained on other weights"):
        run(capsys, "export", "m", "--skip", "block1", "--adapter", "heal")


def test_an_export_of_optimums_whose_data_alone_changed(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graph file is the same; its external data is of other weights."""
    one, other = train(Path("models/a"), 0), train(Path("models/b"), 1)
    folder = as_optimum_exports(one, Path(run(capsys, "export", one).strip()), Path("exports/m"))
    graph = Path(run(capsys, "export", "--from-onnx", folder).strip())
    digest = store.sha256(graph)
    run(capsys, "check", graph, "--reference", "models/a")
    shutil.copy2(other / "model.safetensors", folder / "model.onnx_data")
    run(capsys, "export", "--from-onnx", folder)
    assert store.sha256(graph) != digest and error(graph, Path("models/b")) < 1e-4
    assert not store.check_passed(graph)
    run(capsys, "check", graph, "--reference", "models/a", code=1)
    run(capsys, "check", graph, "--reference", "models/b")
    shutil.copy2(Path("models/a/model.safetensors"), graph.parent / "model.onnx_data")
    with pytest.raises(UserError, match=NOT_THESE):
        run(capsys, "check", graph, "--reference", "models/b")


@pytest.mark.slow
def test_a_copy_of_optimums_export_that_was_killed_at_any_write(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New data over an older copy: what passes for a whole graph at any time computes what it should."""
    one, other = train(Path("models/a"), 0), train(Path("models/b"), 1)
    folder = as_optimum_exports(one, Path(run(capsys, "export", one).strip()), Path("exports/m"))
    graph = export.export_from_onnx(folder)
    older, target, kills = Path("older"), graph.parent, 0
    target.rename(older)
    shutil.copy2(other / "model.safetensors", folder / "model.onnx_data")
    new = export.export_from_onnx(folder).read_bytes()

    def prepare() -> None:
        shutil.rmtree(target)
        shutil.copytree(older, target)

    for _ in every_kill(target, prepare, lambda: export.export_from_onnx(folder)):
        kills += 1
        try:
            store.graph_sidecar(graph)
        except UserError:
            pass
        else:
            assert error(graph, one if graph.read_bytes() != new else other) < 1e-4
        assert export.export_from_onnx(folder) == graph and graph.read_bytes() == new
        assert store.graph_sidecar(graph) and checkpoint.open_checkpoint(target)
        assert not list(target.glob(".*.tmp"))
    assert kills > 20 and error(graph, other) < 1e-4


def test_the_hubs_sum_is_compared_by_check_too(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Path(run(capsys, "export", train(Path("models/m"), 0)).strip())
    source = graph.parent / store.SOURCE
    source.write_text(
        json.dumps({**json.loads(source.read_text()), "etags": {"model.safetensors": "b" * 64}})
    )
    with pytest.raises(UserError, match="is not what was fetched"):
        run(capsys, "check", graph)


def test_an_edited_copy_of_one_tensor_is_another_model(workdir: Path) -> None:
    one = train(Path("models/one"), 0)
    shutil.copytree(one, "models/two")
    file = Path("models/two/model.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    identities = {checkpoint.resolve(f"models/{name}").identity for name in ("one", "two")}
    assert len(identities) == 2
