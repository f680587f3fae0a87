"""The training of an adapter."""
