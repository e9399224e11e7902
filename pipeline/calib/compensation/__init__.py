"""What stands in for skipped sublayers, computed in closed form from one pass of the whole model over text."""
