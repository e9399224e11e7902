"""Benchmarks over a runner, with lm-evaluation-harness: what is asked, what must be computed, and what was found."""
