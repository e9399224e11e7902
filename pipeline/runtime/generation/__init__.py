"""Text generation over a runner: sampling, streamed text, continuous batching.

`pipeline generate`, scoring and the shipped Triton models share it. It needs numpy, tokenizers and jinja2.
"""
