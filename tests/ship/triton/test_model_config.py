"""config.pbtxt, read back by Triton's own protobuf message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.ship.triton import model_config
from tests import serving


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with serving.within(tmp_path_factory.mktemp("config")) as folder:
        return serving.project(folder, ("attn2-3",))[0].resolve()


def test_raw_names_the_tensors_of_the_graph(graph: Path) -> None:
    config = parsed(model_config.raw("m", graph, False, 16, 3))
    assert (config.name, config.backend, config.default_model_filename) == ("m", "onnxruntime", "model.onnx")
    assert (config.max_batch_size, config.instance_group[0].count) == (16, 1)
    assert list(config.version_policy.specific.versions) == [3]
    dims = {entry.name: list(entry.dims) for entry in config.input}
    assert dims["past_key_values.0.key"] == [2, -1, 32] and dims["input_ids"] == [-1]
    assert "past_key_values.2.key" not in dims  # the layers without attention have no cache
    outputs = {entry.name for entry in config.output}
    assert outputs == {"logits", *(f"present.{i}.{x}" for i in (0, 1) for x in ("key", "value"))}
    kinds = {entry.name: entry.data_type for entry in config.input}
    assert kinds["input_ids"] == model_config_pb2.TYPE_INT64
    assert kinds["past_key_values.0.key"] == model_config_pb2.TYPE_FP32
    warm = config.model_warmup[0].inputs
    assert set(warm) == set(dims)
    assert list(warm["attention_mask"].dims) == [2] and list(warm["past_key_values.0.key"].dims) == [2, 1, 32]


def test_raw_of_a_plan(graph: Path) -> None:
    config = parsed(model_config.raw("m", graph, True, 8, 1))
    assert (config.platform, config.backend, config.default_model_filename) == ("tensorrt_plan", "", "")


def test_generate() -> None:
    config = parsed(model_config.generate("m_generate", 2, {"rows": 4, "provider": "auto"}))
    assert config.backend == "python" and config.model_transaction_policy.decoupled
    assert config.max_batch_size == 1 and all(entry.optional for entry in config.input)
    assert [entry.name for entry in config.input] == list(model_config.REQUEST)
    assert [entry.name for entry in config.output] == list(model_config.ANSWER)
    dims = {entry.name: list(entry.dims) for entry in config.input}
    assert dims.pop("stop_words") == [-1] and set(map(tuple, dims.values())) == {(1,)}
    values = {name: entry.string_value for name, entry in config.parameters.items()}
    assert values == {"rows": "4", "provider": "auto"}
    assert list(config.version_policy.specific.versions) == [2]
