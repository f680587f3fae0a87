"""Operators in C++, compiled on this machine when first called. Importing them compiles nothing."""

from hf_softext.ops.two_pass_softmax import two_pass_logsumexp, two_pass_softmax

__all__ = ["two_pass_logsumexp", "two_pass_softmax"]
