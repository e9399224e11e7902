"""ONNX graphs, written and cut."""
