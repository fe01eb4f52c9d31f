"""Pooling of feature maps beyond torch's own: one room for each idea, each with its functions and
its modules. `registry.py` knows them all by name."""
