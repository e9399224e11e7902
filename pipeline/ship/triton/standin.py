"""A Python backend in place of Triton's own `onnxruntime` and `tensorrt` backends, on a machine without them.

`pipeline serve` installs this file under both names, so that the shipped config.pbtxt loads unchanged. It
runs the ONNX graph on the provider of ONNX Runtime that `serve` was told. For a plan it runs the graph that
the plan was built from, not the plan.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

if root := os.environ.get("PIPELINE_ROOT"):
    sys.path.append(root)  # behind the environment's own packages

from pipeline.runtime.onnxruntime import open_session
from pipeline.types import UserError

FILES = ("model.onnx/model.onnx", "graph/model.onnx")
"""Where the graph lies in a version's folder: a shipped graph's own, or the one beside a plan."""


class TritonPythonModel:
    """One model whose config says backend onnxruntime or tensorrt."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph, and refuses a config whose tensors are not the graph's."""
        folder = Path(args["model_repository"]) / args["model_version"]
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None:
            raise pb_utils.TritonModelException(f"{folder} holds no graph that could run here")
        try:
            provider = os.environ.get("PIPELINE_PROVIDER", "cpu")
            self.session = open_session(path, path.parent, provider=provider)
        except UserError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        config = json.loads(args["model_config"])
        for kind, values in (("input", self.session.get_inputs()), ("output", self.session.get_outputs())):
            configured = {entry["name"]: [int(dim) for dim in entry["dims"]] for entry in config[kind]}
            of_graph = {v.name: [dim if isinstance(dim, int) else -1 for dim in v.shape[1:]] for v in values}
            if configured != of_graph:
                raise pb_utils.TritonModelException(f"config.pbtxt names other {kind}s than the graph has")
        self.inputs = [value.name for value in self.session.get_inputs()]
        name = args["model_name"]
        pb_utils.Logger.log_info(f"{name}: stand-in for its backend; {self.session.get_providers()[0]}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs requests of equal shapes together."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        groups: dict[Any, list[int]] = defaultdict(list)
        for number, feed in enumerate(feeds):
            groups[tuple(array.shape[1:] for array in feed.values())].append(number)
        responses: list[Any] = [None] * len(requests)
        for numbers in groups.values():
            names = [requests[number].requested_output_names() for number in numbers]
            for number, response in zip(
                numbers, self._together([feeds[number] for number in numbers], names), strict=True
            ):
                responses[number] = response
        return responses

    def _together(self, feeds: list[dict[str, Any]], names: list[list[str]]) -> list[Any]:
        """One response for each request of a group; `names` are the outputs that each wants."""
        wanted = sorted({name for of_one in names for name in of_one})
        try:
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
            outputs = dict(zip(wanted, self.session.run(wanted, joined), strict=True))
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class; clients get it
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in feeds]
        responses, start = [], 0
        for feed, of_one in zip(feeds, names, strict=True):
            end = start + len(feed["input_ids"])
            tensors = [pb_utils.Tensor(name, outputs[name][start:end]) for name in of_one]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = end
        return responses
