"""Artefacts to where they are served."""
