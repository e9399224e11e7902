"""A variant as a GGUF file, which stock llama.cpp runs."""
