"""The training of a causal language model."""
