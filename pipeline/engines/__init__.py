"""Graphs to engines, and either of them opened."""
