"""A graph or an engine, ready to run. Imports `pipeline.types` alone: a shipped Triton model carries this folder whole."""
