"""What is learnt from text before a graph exists: statistics, skip sets, adapters."""
