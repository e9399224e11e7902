"""NVIDIA Triton Inference Server: the model repository, the files that run inside the server, and the server itself."""
