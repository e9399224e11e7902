"""Depth-pruned LLM deployment: ONNX graphs, skip surgery, checks, TensorRT engines, measurements."""

__version__ = "0.2.0"
