"""Text generation over a runner: sampling, streamed text, continuous batching. The command and the Triton model share it.

These files need numpy, tokenizers and jinja2 and nothing else, so that a shipped model carries them into the server.
"""
