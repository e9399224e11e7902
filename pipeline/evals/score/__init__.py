"""Benchmark scores of graphs and engines, with lm-evaluation-harness."""
