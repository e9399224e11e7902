"""An evolutionary search over masks of sublayers, at a fixed cost."""
