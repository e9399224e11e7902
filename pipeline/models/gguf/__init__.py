"""GGUF files, split ones too: read whole, refused where something in them is not understood."""
