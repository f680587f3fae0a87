"""Adoption of an attention method by a pretrained model."""
