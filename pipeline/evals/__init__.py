"""Artefacts held against PyTorch, the clock and benchmarks."""
