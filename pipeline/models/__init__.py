"""A checkpoint by any of its names, and what follows from it: tensors, tokenizer, texts, costs, the PyTorch reference."""
