"""Skip sets that were chosen, beside each other: time, divergence and scores in one table."""
