"""A checkpoint by any of its names, and its tokenizer, texts, costs and PyTorch reference."""
