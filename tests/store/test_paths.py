"""Where files lie, which project a path is of, and how records name paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import store
from pipeline.store import Project
from pipeline.types import SkipSet, UserError, Variant

GRAPH = "graphs/m/attn2.fp32.onnx"
PLAN = "engines/m/attn2/tensorrt-rtx-sm80-fp16.plan"


@pytest.fixture
def elsewhere(workdir: Path) -> Path:
    """Another project than the current directory's."""
    root = workdir / "a project é"
    root.mkdir()
    return root


@pytest.mark.parametrize(
    "file",
    [
        GRAPH,
        PLAN,
        "evals/results/m/attn2.fp32.check.json",
        "evals/sweeps/demo/ledger.json",
        "calib/m/similarity.json",
        "calib/m/attn2/adapters/heal/heal.json",
        "calib/m/moments/attn5.json",
        "calib/m/hessians/layer5.json",
        "calib/m/compensation/losses.json",
        "graphs/m/config.json",
        "graphs/my model é/optimum/model.onnx",
    ],
)
def test_a_files_own_path_says_which_project_it_is_of(elsewhere: Path, file: str) -> None:
    assert Project.of(elsewhere / file).root == elsewhere
    assert Project.of(Path("a project é") / file).root.resolve() == elsewhere


def test_in_the_projects_own_folder_paths_stay_short(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere)
    assert Project.of(Path(GRAPH)) == Project.of(elsewhere / GRAPH) == Project() == Project(Path())
    assert Project.of(Path(GRAPH)).results("m") == Path("evals/results/m")


def test_a_checkpoint_with_graphs_in_place_is_of_the_current_directory(workdir: Path, tmp_path: Path) -> None:
    assert Project.of(Path("/data/llama/base.fp32.onnx")) == Project()
    one, other = (
        store.result_of(Path(f"/data/{run}/llama/base.fp32.onnx"), "check") for run in ("run-a", "run-b")
    )
    assert one.parent == other.parent == Path("evals/results/llama")  # two runs, whose folders have one name
    assert one != other and re.fullmatch(r"base\.fp32@[0-9a-f]{6}\.check\.json", one.name)


def test_graphs_on_another_disk_are_of_the_project_that_links_to_them(
    elsewhere: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = workdir / "disk" / "graphs"
    (disk / "m").mkdir(parents=True)
    (elsewhere / "graphs").symlink_to(disk)
    assert Project.of(elsewhere / GRAPH) == Project(elsewhere)
    monkeypatch.chdir(elsewhere)
    assert store.result_of(Path(GRAPH), "check") == Path("evals/results/m/attn2.fp32.check.json")


def test_a_link_to_a_model_is_of_the_models_project(elsewhere: Path, workdir: Path) -> None:
    (elsewhere / "graphs/m").mkdir(parents=True)
    (workdir / "short").symlink_to(elsewhere / "graphs/m")
    assert Project.of(workdir / "short/attn2.fp32.onnx") == Project(elsewhere)


@pytest.mark.parametrize("folders", ["evals/study", "graphs/study/models", "calib/study/a/b"])
def test_a_folder_that_is_merely_called_evals_begins_no_project(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, folders: str
) -> None:
    (workdir / folders).mkdir(parents=True)
    monkeypatch.chdir(workdir / folders)
    assert Project.of(Path("llama/base.fp32.onnx")) == Project()
    assert Project.of(Path(GRAPH)) == Project()


@pytest.mark.parametrize("model", ["graphs", "engines", "calib", "evals"])
def test_a_model_may_be_called_as_a_folder_of_the_project(elsewhere: Path, model: str) -> None:
    assert Project.of(elsewhere / "graphs" / model / "base.fp32.onnx").root == elsewhere
    assert Project.of(elsewhere / "evals/results" / model / "base.fp32.check.json").root == elsewhere


def test_every_kind_of_file_has_its_place() -> None:
    project = Project(Path("p"))
    assert project.graphs("m x") == Path("p/graphs/m x")
    assert project.engines("m", "attn2~heal") == Path("p/engines/m/attn2~heal")
    assert project.engine("m", "attn2", "tensorrt-rtx", "sm80", "fp16") == Path("p") / PLAN
    assert project.calib("m") == Path("p/calib/m") and project.figures("m") == Path("p/evals/figures/m")
    assert project.sweep("demo") == Path("p/evals/sweeps/demo")
    assert project.requests("m") == Path("p/evals/cache/m") and project.report() == Path("p/evals/report")
    assert project.benchmarks() == Path("p/evals/benchmarks")
    assert project.prompts("a" * 64) == Path("p/evals/cache/prompts") / f"{'a' * 32}.json.gz"
    variant = Variant("m", SkipSet.parse("attn2"), "fp16", "heal", "all")
    folder = Path("p/engines/m/attn2~heal")
    assert project.shipped(variant, "hf") == folder / "hf"
    assert project.shipped(variant, "gguf") == folder / "m-attn2~heal.gguf"
    assert project.shipped(variant, "gguf", "q8_0") == folder / "m-attn2~heal.q8_0.gguf"
    assert store.graph_path(Path("g"), variant) == Path("g/attn2~heal.fp16.all.onnx")
    assert store.overlay_path(Path("g"), variant.name) == Path("g/attn2~heal.safetensors")
    assert store.overlay_path(Path("g"), "attn2~linear", "int4") == Path("g/attn2~linear.int4.safetensors")
    assert store.sidecar_path(Path("g/attn2.fp16.onnx")) == Path("g/attn2.fp16.json")


def test_results_of_a_graph_and_of_an_engine_never_share_a_file(elsewhere: Path) -> None:
    results = elsewhere / "evals" / "results" / "m"
    assert store.result_of(elsewhere / GRAPH, "check") == results / "attn2.fp32.check.json"
    engine = results / "attn2.tensorrt-rtx-sm80-fp16.bench.json"
    assert store.result_of(elsewhere / PLAN, "bench") == engine
    assert store.model_of(Path(GRAPH)) == store.model_of(Path(PLAN)) == "m"


def test_the_report_reads_what_the_stages_left(elsewhere: Path) -> None:
    kept = [
        "evals/results/m/base.fp32.check.json",
        "engines/m/base/tensorrt-rtx-sm80-fp16.json",
        "evals/sweeps/demo/ledger.json",
        "calib/m/similarity.json",
    ]
    for file in [*kept, "evals/results/m/base.fp32.check.run.json", "graphs/m/base.fp32.json"]:
        (elsewhere / file).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / file).write_text("{}")
    inputs = Project(elsewhere).report_inputs()
    assert [path for paths in inputs.values() for path in paths] == [elsewhere / file for file in kept]
    assert list(inputs) == ["results", "engines", "ledgers", "statistics"]


# ---- paths inside records ----


def test_a_record_names_files_of_its_project_relative_to_itself(elsewhere: Path) -> None:
    result = elsewhere / "evals/results/m/attn2.fp32.check.json"
    assert store.relative(elsewhere / GRAPH, to=result) == "../../../graphs/m/attn2.fp32.onnx"
    assert store.relative(Path("a project é") / GRAPH, to=result) == "../../../graphs/m/attn2.fp32.onnx"
    assert store.relative(Path("/data/rows.jsonl"), to=result) == "/data/rows.jsonl"


def test_a_record_in_a_linked_folder_names_files_that_can_be_found_again(
    elsewhere: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "disk/graphs/m").mkdir(parents=True)
    (elsewhere / "graphs").symlink_to(workdir / "disk/graphs")
    (elsewhere / "texts.txt").touch()
    monkeypatch.chdir(elsewhere)
    for record in (Path("graphs/m/source.json"), Path("calib/m/similarity.json")):
        assert store.relative(Path("texts.txt"), to=record) == "../../texts.txt"
        assert store.resolved("../../texts.txt", record) == Path("texts.txt")
    engine = Path(PLAN)
    assert store.resolved(store.relative(Path("graphs/m"), to=engine), engine) == Path("graphs/m")


def test_a_project_may_be_moved(elsewhere: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, result = elsewhere / GRAPH, elsewhere / "evals/results/m/attn2.fp32.check.json"
    graph.parent.mkdir(parents=True)
    graph.touch()
    name = store.relative(graph, to=result)
    assert store.resolved(name, result).resolve() == graph
    moved = elsewhere.rename(workdir / "moved")
    result = moved / "evals/results/m/attn2.fp32.check.json"
    assert store.resolved(name, result) == Path("moved") / GRAPH
    monkeypatch.chdir("/")
    assert store.resolved(name, result).resolve() == moved / GRAPH


def test_paths_of_version_0_1_start_at_the_projects_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = elsewhere / PLAN
    (elsewhere / "graphs/m").mkdir(parents=True)
    assert store.resolved("graphs/m", plan) == Path("a project é/graphs/m")
    monkeypatch.chdir("/")
    assert store.resolved("graphs/m", plan).resolve() == elsewhere / "graphs/m"


def test_a_path_that_is_gone_is_the_one_that_the_record_names(elsewhere: Path) -> None:
    assert store.resolved("../../../graphs/m", elsewhere / PLAN) == Path("a project é/graphs/m")
    assert store.resolved("/gone/rows.jsonl", elsewhere / PLAN) == Path("/gone/rows.jsonl")


# ---- names ----


@pytest.mark.parametrize(
    "name", ["m", "my model", "modèle é", "模型", "a.b", "attn18_20+mlp3~heal", "x" * 200, "@=-", "é" * 100]
)
def test_a_name_may_have_spaces_and_any_letters(name: str) -> None:
    assert store.plain_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/etc",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x1bb",
        " a",
        "a ",
        "x" * 201,
        "é" * 101,
    ],
)
def test_a_name_that_leaves_its_folder_or_hides_is_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        store.plain_name(name)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        Project().graphs(name)


def test_results_of_long_names_have_names_that_a_file_system_takes(elsewhere: Path) -> None:
    """Of a graph in place and of an engine; the same beginning for all results of one artefact."""
    skip = SkipSet(tuple(range(0, 80, 2)), tuple(range(1, 80, 2)))
    variant = Variant("m", skip, "fp16", "é" * 60, "all")
    project = Project(elsewhere)
    targets = "+".join(f"sm{n}" for n in range(75, 125, 3))
    plan = project.engine("m", variant.name, "tensorrt-rtx", targets, "fp16.all")
    graph, in_place = store.graph_path(project.graphs("m"), variant), store.graph_path(elsewhere, variant)
    paths = [store.sidecar_path(plan), store.overlay_path(project.graphs("m"), variant.name)]
    for artefact in (graph, plan, in_place):
        results = [store.result_of(artefact, what) for what in ("check", "bench", "score." + "t" * 200)]
        assert (
            len({path.name.split(".check")[0].split(".bench")[0].split(".score")[0] for path in results}) == 1
        )
        assert store.result_of(artefact, "score." + "t" * 199 + "u") not in results
        paths += [artefact, *results, *(path.with_suffix(".samples.jsonl") for path in results)]
    assert len(set(paths)) == len(paths)
    for path in paths:
        store.write_json(path, {})
        assert len(path.name.encode()) <= 255


def test_short_names_of_results_stay(elsewhere: Path) -> None:
    graph = Project(elsewhere).graphs("m") / ("x" * 145 + ".fp32.onnx")
    assert store.result_of(graph, "score.gsm8k").name == "x" * 145 + ".fp32.score.gsm8k.json"


def test_what_cuda_gave_lies_beside_what_the_cpu_gave() -> None:
    for name in ("greedy-mlp.json", "mlp1.auto.json", "attn0.safetensors"):
        path, stem = Path("calib/m") / name, name.rpartition(".")
        assert store.measured_on(path, "cpu") == path
        assert store.measured_on(path, "cuda") == path.with_name(f"{stem[0]}.cuda.{stem[2]}")
