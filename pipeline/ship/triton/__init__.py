"""NVIDIA Triton Inference Server: the model repository, what runs inside it, and the server itself."""
