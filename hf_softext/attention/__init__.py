"""Attention methods for `attn_implementation=`: one file a method, one adapter for all of them."""
