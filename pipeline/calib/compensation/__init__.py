"""What stands in for skipped sublayers, in closed form from one pass of the whole model over text."""
