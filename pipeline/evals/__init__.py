"""Artefacts compared with PyTorch, timed, and scored on benchmarks."""
