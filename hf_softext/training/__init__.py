"""Trainers, their arguments and what they write."""
