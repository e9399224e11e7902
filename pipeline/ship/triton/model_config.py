"""config.pbtxt of the two models that a variant becomes, as Triton's own protobuf message.

`NAME` is the artefact with its tensors as they are. `NAME_generate` takes text and streams text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from pipeline.graphs import graphfile
from pipeline.ship.triton.in_triton import ERROR_STATUS
from pipeline.types import UserError

TYPES = {
    ir.DataType.INT64: "TYPE_INT64",
    ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BOOL: "TYPE_BOOL",
}
REQUEST = {
    "text_input": ("TYPE_STRING", 1),
    "messages": ("TYPE_STRING", 1),
    "max_tokens": ("TYPE_INT32", 1),
    "temperature": ("TYPE_FP32", 1),
    "top_k": ("TYPE_INT32", 1),
    "top_p": ("TYPE_FP32", 1),
    "seed": ("TYPE_UINT64", 1),
    "repetition_penalty": ("TYPE_FP32", 1),
    "presence_penalty": ("TYPE_FP32", 1),
    "frequency_penalty": ("TYPE_FP32", 1),
    "stop_words": ("TYPE_STRING", -1),
    "ignore_eos": ("TYPE_BOOL", 1),
    "logprobs": ("TYPE_INT32", 1),
    "stream": ("TYPE_BOOL", 1),
    "exclude_input_in_output": ("TYPE_BOOL", 1),
    "return_finish_reason": ("TYPE_BOOL", 1),
    "return_num_input_tokens": ("TYPE_BOOL", 1),
    "return_num_output_tokens": ("TYPE_BOOL", 1),
    "share": ("TYPE_STRING", 1),
    "probe": ("TYPE_BOOL", 1),
    ERROR_STATUS: ("TYPE_BOOL", 1),
}
"""Input of NAME_generate → type and dimension. To Triton all are optional: the model says what is missing."""
ANSWER = {
    "text_output": "TYPE_STRING",
    "finish_reason": "TYPE_STRING",
    "num_input_tokens": "TYPE_UINT32",
    "num_output_tokens": "TYPE_UINT32",
    "logprobs": "TYPE_STRING",
}


def raw(name: str, graph: Path, is_plan: bool, rows: int, version: int) -> str:
    """config.pbtxt of the artefact itself: its tensors, batches of requests of equal shapes, a warm-up.

    Args:
        name: of the model.
        graph: where names, types and shapes are read; for a plan the graph that it was built from.
        is_plan: it is a TensorRT plan.
        rows: the largest batch.
        version: the one that is served.

    Raises:
        UserError: a tensor's type is not known to Triton.
    """
    config = pb.ModelConfig(name=name, max_batch_size=rows)
    if is_plan:
        config.platform = "tensorrt_plan"
    else:
        config.backend, config.default_model_filename = "onnxruntime", "model.onnx"
    config.version_policy.specific.versions.append(version)
    config.instance_group.add(count=1)  # Triton's default on a CPU is two, with the weights twice
    config.dynamic_batching.max_queue_delay_microseconds = 500
    warm = config.model_warmup.add(name="one token on a cache of one", batch_size=1)
    model = graphfile.load(graph)
    for value in model.graph.inputs:
        kind, dims = _kind(value), _dims(value)
        config.input.add(name=value.name, data_type=kind, dims=dims)
        # All is padding, which the mask's diagonal allows.
        shape = [2] if value.name == "attention_mask" else [1 if dim < 0 else dim for dim in dims]
        warm.inputs[value.name].CopyFrom(pb.ModelWarmup.Input(data_type=kind, dims=shape, zero_data=True))
    for value in model.graph.outputs:
        config.output.add(name=value.name, data_type=_kind(value), dims=_dims(value))
    return _text(config)


def generate(name: str, version: int, parameters: Mapping[str, str | int]) -> str:
    """config.pbtxt of the model that takes text: decoupled, in the Python backend, in one process.

    Args:
        name: of the model.
        version: the one that is served.
        parameters: what the model reads from its config (`in_triton.parameters`).
    """
    # max_batch_size 1 gives the shape [1, 1] that TensorRT-LLM's clients and Triton's OpenAI frontend send.
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=1)
    config.model_transaction_policy.decoupled = True
    config.version_policy.specific.versions.append(version)
    for key, (kind, size) in REQUEST.items():
        config.input.add(name=key, data_type=kind, dims=[size], optional=True)
    for key, kind in ANSWER.items():
        config.output.add(name=key, data_type=kind, dims=[1])
    # The process opens the GPU itself, where there is one. A second instance would be a second cache.
    config.instance_group.add(count=1, kind="KIND_CPU")
    for key, value in parameters.items():
        config.parameters[key].string_value = str(value)
    return _text(config)


def _kind(value: ir.Value) -> str:
    if value.dtype is None or value.dtype not in TYPES:
        raise UserError(f"{value.name} is of type {value.dtype}, which is not shipped to Triton")
    return TYPES[value.dtype]


def _dims(value: ir.Value) -> Sequence[int]:
    """Its dimensions without the batch; -1 where one is symbolic."""
    if value.shape is None:
        raise UserError(f"{value.name} has no shape; export the graph again")
    return [dim if isinstance(dim, int) else -1 for dim in value.shape][1:]


def _text(config: Any) -> str:
    return str(text_format.MessageToString(config))
