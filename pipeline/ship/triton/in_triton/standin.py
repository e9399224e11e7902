"""A Python-based backend that stands in for Triton's own `onnxruntime` and `tensorrt` backends on a machine without them.

`pipeline serve` installs this file under both names, so that the shipped config.pbtxt loads unchanged. It runs the ONNX
graph on the CPU, for a plan the graph that the plan was built from: the plan itself is not executed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

FILES = ("model.onnx/model.onnx", "graph/model.onnx")
"""Where the graph lies in a version's folder: a shipped graph's own, or the one beside a plan."""


class TritonPythonModel:
    """One model whose config says backend onnxruntime or tensorrt."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph, and refuses a config whose tensors are not the graph's."""
        folder = Path(args["model_repository"]) / args["model_version"]
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None:
            raise pb_utils.TritonModelException(f"{folder} holds no graph that could run on a CPU")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        config = json.loads(args["model_config"])
        for kind, values in (("input", self.session.get_inputs()), ("output", self.session.get_outputs())):
            named = {entry["name"]: [int(dim) for dim in entry["dims"]] for entry in config[kind]}
            found = {v.name: [dim if isinstance(dim, int) else -1 for dim in v.shape[1:]] for v in values}
            if named != found:
                raise pb_utils.TritonModelException(f"config.pbtxt names other {kind}s than the graph has")
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.most = max(1, int(config.get("max_batch_size", 1)))
        pb_utils.Logger.log_info(
            f"{args['model_name']}: stand-in for its backend; runs {path.name} on the CPU"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs requests of equal shapes together."""
        alike: dict[Any, list[int]] = defaultdict(list)
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs}
            for r in requests
        ]
        for number, feed in enumerate(feeds):
            alike[tuple(array.shape[1:] for array in feed.values())].append(number)
        responses: list[Any] = [None] * len(requests)
        for numbers in alike.values():
            wanted = sorted(
                {name for number in numbers for name in requests[number].requested_output_names()}
            )
            try:
                joined = {
                    name: np.concatenate([feeds[number][name] for number in numbers]) for name in self.inputs
                }
                outputs = dict(zip(wanted, self.session.run(wanted, joined), strict=True))
            except Exception as error:  # the session's own; told to those who asked
                for number in numbers:
                    responses[number] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                continue
            start = 0
            for number in numbers:
                end = start + len(feeds[number]["input_ids"])
                names = requests[number].requested_output_names()
                responses[number] = pb_utils.InferenceResponse(
                    output_tensors=[pb_utils.Tensor(name, outputs[name][start:end]) for name in names]
                )
                start = end
        return responses
