"""Weights in blocks of 4 or 8 bits with a scale each: the arithmetic, without any graph."""
