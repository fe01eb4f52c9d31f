"""Pooling of features and of behaviour, for recommenders."""
