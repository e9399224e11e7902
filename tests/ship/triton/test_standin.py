"""The stand-in for Triton's own backends, run outside the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from pipeline.runtime import onnxruntime
from pipeline.ship.triton import checks, repository, ship, standin
from tests import serving, triton_backend

NAME = "tiny-attn2-3"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with serving.within(tmp_path_factory.mktemp("standin")) as folder:
        repo = Path("engines/triton").resolve()
        ship.ship(serving.project(folder, ("attn2-3",)), repo)
        return repo


def model(repo: Path, **changes: Any) -> standin.TritonPythonModel:
    config = text_format.Parse((repo / NAME / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    fields = json_format.MessageToDict(config, preserving_proto_field_name=True)
    opened = standin.TritonPythonModel()
    opened.initialize(
        {
            "model_repository": str(repo / NAME),
            "model_version": "1",
            "model_name": NAME,
            "model_config": json.dumps({**fields, **changes}),
        }
    )
    return opened


def test_requests_of_equal_shapes_run_together(repo: Path) -> None:
    opened = model(repo)
    runs = list[int]()
    run = opened.session.run
    opened.session = type(
        "Counted", (), {"run": lambda _, names, feeds: runs.append(1) or run(names, feeds)}
    )()
    with checks.open_graph(repo, repository.newest(repository.read(repo))[NAME][1]) as runner:
        ids = [np.arange(3, 8)[None], np.arange(9, 20).reshape(1, 11), np.arange(4, 9)[None]]
        feeds = [runner.feeds(one) for one in ids]
        outputs = [["logits"], ["logits"], ["logits", "present.0.key"]]
        requests = [
            triton_backend.Request(inputs=feed, outputs=names)
            for feed, names in zip(feeds, outputs, strict=True)
        ]
        responses = opened.execute(requests)
        assert len(runs) == 2
        for feed, names, response in zip(feeds, outputs, responses, strict=True):
            expected = runner.infer(feed, names)
            assert [tensor.name() for tensor in response.output_tensors] == names
            for tensor in response.output_tensors:
                np.testing.assert_allclose(tensor.as_numpy(), expected[tensor.name()], atol=1e-5)


def test_an_error_goes_to_those_who_asked(repo: Path) -> None:
    opened = model(repo)
    with checks.open_graph(repo, repository.newest(repository.read(repo))[NAME][1]) as runner:
        feeds = [runner.feeds(np.arange(3, 8)[None]), runner.feeds(np.full((1, 3), 9999))]
    requests = [triton_backend.Request(inputs=feed, outputs=["logits"]) for feed in feeds]
    right, wrong = opened.execute(requests)
    assert right.error is None and right.output_tensors
    assert wrong.error is not None and not wrong.output_tensors


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_it_runs_on_the_provider_that_serve_names(
    repo: Path, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, asked = standin.open_session, list[str]()

    def open_session(path: Path, folder: Path, provider: str) -> Any:
        asked.append(provider)
        return opened(path, folder)

    monkeypatch.setattr(standin, "open_session", open_session)
    monkeypatch.setenv("PIPELINE_PROVIDER", provider)
    assert model(repo).inputs and asked == [provider]
    monkeypatch.delenv("PIPELINE_PROVIDER")
    assert model(repo).inputs and asked[1:] == ["cpu"]


def test_a_provider_that_is_not_there_is_triton_s_error(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "refusal", lambda provider: f"no {provider} here")
    monkeypatch.setenv("PIPELINE_PROVIDER", "cuda")
    with pytest.raises(pb_utils.TritonModelException, match="no cuda here"):
        model(repo)


def test_another_config_and_a_missing_graph_are_refused(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(
        pb_utils.TritonModelException, match=r"config\.pbtxt names other inputs than the graph"
    ):
        model(repo, input=[{"name": "input_ids", "dims": ["-1"]}])
    (tmp_path / "m/1").mkdir(parents=True)
    place = {"model_repository": str(tmp_path / "m"), "model_version": "1"}
    with pytest.raises(pb_utils.TritonModelException, match="holds no graph"):
        standin.TritonPythonModel().initialize(place)
