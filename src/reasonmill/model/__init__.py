"""The policy network: unmodified transformers decoders, run on packed rows of sequences."""
