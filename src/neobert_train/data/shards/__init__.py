"""Documents tokenised once into memory-mapped shards: how they are read, and how they are made."""
