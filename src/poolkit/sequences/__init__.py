"""Pooling of sequences, bags and tokens."""
