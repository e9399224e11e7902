"""What runs inside the Triton server."""
