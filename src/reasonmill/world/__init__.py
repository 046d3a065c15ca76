"""The synthetic tiny world: a corpus, a tokenizer and bases small enough for two CPU cores. Without torch."""
