"""A graph or an engine, ready to run. Imports `pipeline.types` alone, so that a Triton model can carry it."""
