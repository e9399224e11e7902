"""`pipeline bench`: the papers' latency measurement."""
