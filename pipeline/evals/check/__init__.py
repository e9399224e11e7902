"""`pipeline check`: artefacts beside PyTorch."""
